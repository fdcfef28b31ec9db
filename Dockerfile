# dreamset with CUDA's libraries, which torch's wheel brings; the host needs NVIDIA's driver and container toolkit.
#
#   docker build -t dreamset .
#   docker run --rm -it --gpus all --user "$(id -u):$(id -g)" -v "$PWD:/project" dreamset init my-project --images photos
#
# Without --gpus it computes on the CPU. docs/gpu.md says more.
FROM python:3.11-slim-bookworm

# `dreamset init` and DVC call git.
RUN apt-get update && apt-get install -y --no-install-recommends git && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/dreamset
COPY requirements.lock ./
RUN pip install --no-cache-dir -r requirements.lock
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE params.yaml dvc.yaml .dvcignore ./
COPY .dvc .dvc
COPY src src
COPY data/prompts data/prompts
COPY models/base models/base
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

# Any user may run it: weights and settings go where the volume is.
ENV HOME=/project
WORKDIR /project
ENTRYPOINT ["dreamset"]
