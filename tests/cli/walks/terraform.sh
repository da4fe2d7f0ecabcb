# Somebody who knows Terraform and DVC: a plan that a pipeline branches on, several models, a file with the options,
# output for programs. tests/cli/test_walks.py runs each line as it stands; see deployer.sh.

cosyjit synth CosyVoice --seed 0
cosyjit synth CosyVoice2 --family cosyvoice2 --seed 0
cat >cosyjit.toml <<'END'
store = "artifacts"

[export]
precision = ["fp16"]

[plan]
precision = ["fp16"]
END

# A plan, as `terraform plan -detailed-exitcode`.
says 2 "3 of 3 targets to build: 3 new" cosyjit plan CosyVoice --exit-code
says 1 "does not exist" cosyjit plan CosyVoice3 --exit-code
says 0 "3 built" summary cosyjit export CosyVoice --json
says 0 "Nothing is to be built" cosyjit plan CosyVoice --exit-code
test -d artifacts

# Several models at a time; what is wrong with one does not stop the other.
says 2 "1 of 1 targets to build: 1 new" cosyjit plan CosyVoice CosyVoice2 --component 'flow.*' --exit-code
says 2 "does not exist" cosyjit export CosyVoice absent --component flow.encoder
says 0 "Published in" cosyjit export CosyVoice CosyVoice2 --component flow.encoder
says 0 "current" cosyjit status CosyVoice CosyVoice2

# Output for programs: one object, in errors too.
says 0 '"state": "cached"' cosyjit export CosyVoice --component flow.encoder --json
says 2 '"kind": "SourceError"' cosyjit export absent --json
says 2 '"kind": "UsageError"' cosyjit export CosyVoice --sideways --json
test "$(cosyjit status CosyVoice -q)" = ""
says 2 "does not exist" cosyjit plan absent -q

# What is in the way is said before, and what is not concerned can be exported without it.
mkdir CosyVoice2/vllm && touch CosyVoice2/vllm/config.json
says 0 "vllm: was not written by cosyjit" cosyjit plan CosyVoice2 --component all --precision all
says 1 "vllm: was not written by cosyjit" cosyjit plan CosyVoice2 --exit-code
says 2 "vllm: was not written by cosyjit" cosyjit export CosyVoice2
says 0 "Published in" cosyjit export CosyVoice2 --component flow.encoder

# Completion, as the shell would load it.
cosyjit completion bash >completion && bash -n completion
