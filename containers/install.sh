#!/bin/sh
# Installs cosyjit from a checkout into a new virtual environment; the Dockerfile runs it. Nothing else is written to.
#
#   install.sh CHECKOUT ENVIRONMENT [OPTION OF PIP]...
set -eu
checkout=$1 environment=$2
shift 2
python3 -m venv "$environment"
"$environment/bin/pip" install --no-cache-dir --disable-pip-version-check --constraint "$checkout/constraints.txt" "$@" "$checkout[s3,signing,onnx,hf,hub,otel]"
