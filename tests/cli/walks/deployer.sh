# A deployer with a model directory: what is here, what an export would do, the export, a new checkpoint, the way back.
# tests/cli/test_walks.py runs each line as it stands. `says STATUS TEXT COMMAND…` fails unless both are so.

# What is here.
says 0 "0.1" cosyjit -V
says 0 "system" cosyjit doctor versions system processors memory store settings
cosyjit synth CosyVoice --seed 0

# What an export would do. Nothing is built.
says 0 "6 of 6 targets to build: 6 new" cosyjit plan CosyVoice
cd CosyVoice && test -z "$(ls | grep zip)" && cd ..

# What people type.
says 2 "fp32" cosyjit plan CosyVoice --precision fp8
says 2 "llm.text_encoder" cosyjit plan CosyVoice --component 'llm.txt*'
says 2 "hf:FunAudioLLM/CosyVoice2-0.5B" cosyjit plan https://huggingface.co/FunAudioLLM/CosyVoice2-0.5B
says 0 "2 of 2 targets to build: 2 new" cosyjit plan CosyVoice --component flow.encoder --precision FP16,half,float32
says 0 "2 of 2 targets to build: 2 new" cosyjit plan CosyVoice --component 'flow.enc*' --precision fp32,fp16

# The export, and what is there then.
says 0 "Published in" cosyjit export CosyVoice
says 0 "current" cosyjit status CosyVoice
says 0 "6 of 6 targets" cosyjit plan CosyVoice
says 0 "cached" cosyjit export CosyVoice
says 0 "Nothing is wrong" cosyjit verify CosyVoice
says 0 "fingerprint" cosyjit lineage CosyVoice/llm.llm.fp16.zip
says 2 "is not an artifact" cosyjit lineage CosyVoice/cosyvoice.yaml

# A new checkpoint: what changed, and the way back to what was.
cosyjit synth CosyVoice --seed 1 --force
says 1 "stale" cosyjit status CosyVoice
says 0 "6 of 6 targets to build: 6 stale" cosyjit plan CosyVoice
says 0 "6 built" summary cosyjit export CosyVoice --json
says 0 "tensors changed" cosyjit diff CosyVoice
says 0 "changed" cosyjit history CosyVoice
says 0 "Publication 3" cosyjit rollback CosyVoice
says 0 "All artifacts are the same" cosyjit diff CosyVoice 1 3

# A serving node: the same store, no build.
cosyjit synth CosyVoice --seed 0 --force
says 0 "Published in" cosyjit export CosyVoice --publish serving --no-build
says 1 "--no-build builds nothing" cosyjit export CosyVoice --publish serving --precision bf16 --no-build
says 0 "Nothing is wrong" cosyjit verify serving

# Room on the disk.
says 2 "unit" cosyjit gc --older-than 7
says 2 "-1" cosyjit gc --keep -1
says 0 "would go" cosyjit gc --keep 1 --older-than 0s
says 0 "freed" cosyjit gc --keep 1 --older-than 0s --delete
says 0 "Nothing is wrong" cosyjit verify
