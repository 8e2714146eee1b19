// The actions of `llava data` that make and judge the small world.
#pragma once

#include "llava/cli/args.h"

namespace llava::cli {

int make_scenes(const std::vector<std::string>& words);
int report_scenes(const std::vector<std::string>& words);

}  // namespace llava::cli
