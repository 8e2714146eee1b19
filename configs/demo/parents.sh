# Teaches the demo's parents from nothing; sourced by scripts/demo.sh --from-scratch, which sets
# $llava, $folder, $world and the functions phase and train. Sums of several threads depend on how many
# they are; with two, as here, the same parents come out bit for bit on the same kind of CPU.
phase seed $llava init --shape tiny --output_dir "$folder/seed" --seed 1 \
  --tokenizer_text "$world/corpus.txt" --tokenizer_size 1000 --vocab_size 1024 \
  --hidden_size 128 --intermediate_size 384 --num_hidden_layers 4 --num_attention_heads 4 \
  --vision_hidden_size 128 --vision_intermediate_size 384 --vision_num_hidden_layers 5 \
  --vision_num_attention_heads 4 --image_size 84 --patch_size 14 --image_aspect_ratio square
train language language text --model_name_or_path "$folder/seed" --threads 2
# One thing in a picture first, then several; captions reach the tower through the language parent.
train single tower single --model_name_or_path "$folder/language/model" --threads 2
train tower tower captions --model_name_or_path "$folder/single/model" --threads 2
phase parents $llava init --vision_tower "$folder/tower/model" --language_model "$folder/language/model" \
  --output_dir "$folder/parents" --image_aspect_ratio square --dtype bfloat16 --seed 1
