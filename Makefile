# Two commands: `make smoke` and `make cifar10`. `make help` says the rest.

P       ?= smoke
DATA    ?= data
CFG     ?= pipelines/$(P).json
DEVICE  ?= auto
GPUS    ?= 1
SET     ?=
SEEDS   ?=
CIFAR10 ?=
TINY    ?=
RAW     ?=
SCALE   ?=
SUITE   ?=
SIZE    ?= ci
SEED    ?= 0
CASE    ?=
JOBS    ?=
FUZZ    ?=
BENCH_SECONDS ?= 10
ifndef CUDA
CUDA    := $(if $(or $(wildcard /proc/driver/nvidia/version),$(shell command -v nvidia-smi 2>/dev/null)),1,0)
endif

# libtorch of the user's own, instead of the one that `deps` installs. Build scripts run in other directories.
ifdef LIBTORCH
override LIBTORCH := $(abspath $(LIBTORCH))
export LIBTORCH
endif

# Threads that spin while they wait for each other slow a loaded machine, or `make -j2`, by a factor of ten.
export OMP_WAIT_POLICY ?= passive

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help deps build all show smoke cifar10 test check unit cuda-test faults fuzz python-test bench gc clean distclean

include pipelines/stages.mk

define HELP
make TARGET [VARIABLE=VALUE]...

  smoke      build everything, run the whole pipeline on the CPU from images it makes itself, print the results
  cifar10    both trainings of the paper on CIFAR-10 and all that follows (needs a CUDA device; see SCALE)
  test       every check: format, clippy, unit and golden tests, smoke and its assertions, a sample of the faults

  prepare train extract probe sample fid
             one stage of the run P, after those that it needs
  all        all stages of the run P
  snapshots  probe and FID of the weights after each epoch of train.snapshots of the run P
  report     page with the figures and the table of the runs RUNS, as far as they are
  show       results of the run P

  deps       install libtorch into .venv (done by build when needed)
  build      compile everything into target/release
  check      format and clippy
  unit       unit, golden and integration tests
  cuda-test  those that need a GPU, which test includes where there is one; of two GPUs, those between GPUs too
  faults     break the pipeline on purpose: kills, faults of the disk, damaged files, races (docs/faults.md)
  fuzz       libFuzzer on the readers of files from strangers (needs cargo-fuzz; docs/faults.md)
  bench      how fast each stage computes, beside PyTorch's training step where Python can import torch: a table, and
             docs/bench/DEVICE.md with the machine. Minutes; reads no artifacts [P=cifar10-lcf on CUDA, else P=smoke]
  python-test  whether PyTorch loads the model of the run P and, exported, draws its samples; skipped where Python
             cannot import torch
  gc         remove artifacts that no run needs, and interrupted builds
  clean      forget the run P; its artifacts stay in the store until gc
  distclean  remove everything built: ./target, .venv, all runs and artifacts; downloads and CARGO_TARGET_DIR stay

  P=RUN          the run: pipelines/RUN.json [smoke]. There are
                 $(sort $(notdir $(basename $(wildcard pipelines/*.json))))
  RUNS="A B"     what report puts side by side [P]
  SET=A.B=C      override values of its config, like SET="train.epochs=20 probe.epochs=5"
  SEEDS="1 2"    sample with these seeds too; fid then says how far its numbers depend on the seed
  DEVICE=NAME    where to compute: auto, cpu, cuda:0 [auto]
  GPUS=N         train with N GPUs of this machine; every other stage takes one [1]
  CIFAR10=PATH   local copy of CIFAR-10, binary version: archive or folder [downloaded]
  TINY=PATH      local copy of Tiny-ImageNet-200 for P=tiny-imagenet: zip or folder [downloaded]
  RAW=PATH       prepare any run from this path: --data of lcf-prepare [downloaded]
  SCALE=cpu      cifar10 with a small model on a subset of the images, for 2 CPU cores
  BENCH_SECONDS=S  bench: seconds that each thing is measured for [10]
  SIZE=full      faults: all cases, about an hour and a half, instead of a sample
  SUITE=NAMES    faults: only these; SEED=N: another sample; CASE=N: one case of one of them; JOBS=N: N cases at a time [2]
  FUZZ=NAMES     fuzz: only these targets [all: up to 10 million executions or half an hour each]
  CUDA=0|1       libtorch without or with its CUDA libraries [$(CUDA): 1 where there is an NVIDIA driver]
  LIBTORCH=DIR   use this libtorch 2.11.0 and install none
  DATA=DIR       where artifacts and runs are kept; no spaces in it [data]
  CFG=FILE       config of the run [pipelines/P.json]

`make -n TARGET` says what would run and runs nothing.
endef

help:
	@: $(info $(HELP))

deps:
	@pipelines/deps.sh $(CUDA)

build: $(BINS)

show: $(ARTIFACT)
	@$(ARTIFACT) show $(RUN)

smoke:
	@$(MAKE) --no-print-directory all snapshots P=smoke DEVICE=cpu
	@$(ARTIFACT) show $(DATA)/runs/smoke && echo
	@$(MAKE) --no-print-directory report P=smoke

CIFAR10_RUNS := $(if $(SCALE),cifar10-cpu-fm cifar10-cpu-lcf,cifar10-fm cifar10-lcf)

ifneq ($(SCALE),$(filter cpu,$(SCALE)))
cifar10:
	@echo "make: error: SCALE=$(SCALE): expected cpu, or nothing for the full size" >&2; exit 2
else ifeq ($(SCALE)$(filter 1,$(CUDA)),)
cifar10:
	@cat pipelines/no-cuda.txt >&2; exit 1
else
cifar10:
	@$(foreach run,$(CIFAR10_RUNS),$(MAKE) --no-print-directory all snapshots P=$(run) &&) :
	@$(foreach run,$(CIFAR10_RUNS),$(ARTIFACT) show $(DATA)/runs/$(run) && echo &&) :
	@$(MAKE) --no-print-directory report RUNS="$(CIFAR10_RUNS)"
endif

test: check
	@$(MAKE) --no-print-directory unit
	@$(MAKE) --no-print-directory smoke
	pipelines/smoke-test.sh
	@$(MAKE) --no-print-directory faults
	@$(MAKE) --no-print-directory python-test P=smoke DEVICE=cpu
	@$(if $(filter-out 0,$(GPU_COUNT)),$(MAKE) --no-print-directory cuda-test)

check: deps
	cargo fmt --check
	cargo clippy --release --workspace --all-targets -- -D warnings
	cargo clippy --release --workspace --all-targets --all-features -- -D warnings
	pipelines/deny.sh

unit: deps
	pipelines/tensorboard.sh
	cargo test --release --workspace

# Those between GPUs want two. Where the network of FID is not there, as before the first smoke, its test fails and says so.
GPU_COUNT = $(if $(filter 1,$(CUDA)),$(shell nvidia-smi -L 2>/dev/null | grep -c '^GPU'),0)
CUDA_TEST := cargo test --release --features cuda-tests
cuda-test: private ALONE = --test-threads=1 $(if $(filter 1,$(GPU_COUNT)),--skip collectives_on_cuda --skip gpus_make)
cuda-test: deps
	$(CUDA_TEST) -p lcf-native --lib -- $(ALONE)
	$(CUDA_TEST) -p lcf-model --lib -- $(ALONE) fused
	$(CUDA_TEST) -p lcf-train -- $(ALONE) cuda_tests gpus_make
	$(CUDA_TEST) -p lcf-fid -- $(ALONE) a_gpu_computes

faults: build
	cargo build --release --workspace --bin lcf-faults
	$(TARGET)/release/lcf-faults $(SUITE) --size $(SIZE) --seed $(SEED)$(CASE:%= --case %)$(JOBS:%= --jobs %)

fuzz: deps
	faults/fuzz.sh $(FUZZ)

# Says that it is skipped where there is no Python with torch: $LCF_PYTHON, .venv of the CUDA set, or python3.
python-test: $(RUN)/train.stamp $(RUN)/sample.stamp
	LCF_TRAIN=$(RUN)/train cargo test --release --workspace --test golden interop
	LCF_RUN=$(RUN) cargo test --release --workspace --test artifact pytorch
	cargo test --release --workspace --test report pytorch

# Full size where there is CUDA, unless the run is given. The stages make their own images, at random.
BENCH_RUN := $(if $(filter file,$(origin P)),$(if $(filter-out cpu,$(DEVICE)),$(if $(filter 1,$(CUDA)),cifar10-lcf)))
bench: private P := $(or $(BENCH_RUN),$(P))
bench: build
	@P='$(P)' CFG='$(CFG)' SET='$(SET)' DEVICE='$(DEVICE)' GPUS='$(GPUS)' DATA='$(DATA)' BIN='$(TARGET)/release' \
	    BENCH_SECONDS='$(BENCH_SECONDS)' pipelines/bench/run.sh

gc: build
	$(ARTIFACT) gc --store $(STORE) --runs $(DATA)/runs

clean:
	rm -rf $(RUN)

distclean:
	rm -rf target .venv $(STORE) $(DATA)/runs $(DATA)/bench
