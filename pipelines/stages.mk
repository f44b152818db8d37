# The stages of the run P. Make knows files, the stages know keys: a stage's target is a stamp beside the link to its
# artifact, and a stage entered for nothing finds its key in the store and ends at once.

# Make takes a name with a space in it for two.
$(foreach v,DATA P CFG CARGO_TARGET_DIR,$(if $(word 2,$($v)),$(error $v="$($v)": spaces are not supported there)))

STORE    := $(DATA)/artifacts
RUN      := $(DATA)/runs/$(P)
# Where the training and its data are: in the run itself, or, for an evaluation of its snapshots, one directory up.
TRAINING     ?= $(RUN)
TARGET   := $(or $(CARGO_TARGET_DIR),target)
ARTIFACT := $(TARGET)/release/lcf-artifact
REPORT   := $(TARGET)/release/lcf-report
STAGES   := prepare train extract probe sample fid
BINS     := $(STAGES:%=$(TARGET)/release/lcf-%) $(ARTIFACT) $(REPORT)
STAMPS   := $(STAGES:%=$(RUN)/%.stamp)

# More seeds to sample with, each an artifact of its own that fid is given as well.
SEED_RUNS   := $(SEEDS:%=sample-seed-%)
SEED_STAMPS := $(SEED_RUNS:%=$(RUN)/%.stamp)

.PHONY: FORCE snapshots report $(STAGES)

all: $(STAMPS)
$(STAGES): %: $(RUN)/%.stamp

# A stamp whose artifact is gone is not done.
$(foreach s,$(STAGES) $(SEED_RUNS),$(if $(wildcard $(RUN)/$s/manifest.json),,$(shell rm -f $(RUN)/$s.stamp)))

# With -n nothing is built, so assume that what is there is current: only stages that would be entered are named.
FORCED := $(if $(findstring n,$(firstword -$(MAKEFLAGS))),,FORCE)

# Cargo knows what to compile; a program that stays as it is leaves its stages alone.
$(BINS) &: $(FORCED)
	@pipelines/deps.sh $(CUDA)
	cargo build --release --workspace --exclude lcf-faults

$(RUN):
	@mkdir -p $@

# Overrides are part of what is asked for: when they change, every stage is entered.
$(RUN)/set: $(shell echo '$(SET)' | cmp -s - $(RUN)/set || echo FORCE) | $(RUN)
	@echo '$(SET)' > $@

# Where raw images are read from, as a word of the shell. The stamp of prepare holds where it has read them: it is
# entered when another path is given. When none is, what has been prepared is good.
RAW_PATH := $(or $(RAW),$(if $(filter cifar10%,$(P)),$(CIFAR10)),$(if $(filter tiny%,$(P)),$(TINY)))
RAW_WORD := '$(subst ','\'',$(RAW_PATH))'
RAW_NEW  := $(if $(RAW_PATH),$(shell echo $(RAW_WORD) | cmp -s - $(RUN)/prepare.stamp || echo FORCE))
STAMP    :=

pipelines/%.json:
	@echo "make: error: no run $*: there is no $@ (make help lists the runs)" >&2; exit 2

# The config and, in turn, the file that it is based on.
with_base = $1 $(foreach b,$(shell sed -n 's/.*"base" *: *"\([^"]*\)".*/\1/p' $1 2>/dev/null),$(call with_base,$(if $(filter /%,$b),,$(dir $1))$b))
CFGS := $(call with_base,$(CFG))

$(STAMPS): $(RUN)/%.stamp: $(TARGET)/release/lcf-% $(CFGS) $(RUN)/set | $(RUN)
	$(TARGET)/release/lcf-$* --config $(CFG)$(SET:%= --set %) --store $(STORE) --link $(RUN)/$* $(FLAGS)
	@echo $(STAMP) > $@

$(SEED_STAMPS): $(RUN)/sample-seed-%.stamp: $(TARGET)/release/lcf-sample $(CFGS) $(RUN)/set $(TRAINING)/train.stamp | $(RUN)
	$(TARGET)/release/lcf-sample --config $(CFG)$(SET:%= --set %) --set sample.seed=$* --store $(STORE) --link $(RUN)/sample-seed-$* --model $(TRAINING)/train $(on)
	@touch $@

# The stamp of fid holds the seeds that it was given: it is entered when they change.
SEEDS_NEW := $(shell echo '$(SEEDS)' | cmp -s - $(RUN)/fid.stamp || echo FORCE)

# What each stage reads.
$(RUN)/prepare.stamp: $(RAW_NEW)
$(RUN)/train.stamp:   $(RUN)/prepare.stamp
$(RUN)/extract.stamp: $(TRAINING)/train.stamp $(TRAINING)/prepare.stamp
$(RUN)/probe.stamp:   $(RUN)/extract.stamp
$(RUN)/sample.stamp:  $(TRAINING)/train.stamp
$(RUN)/fid.stamp:     $(RUN)/sample.stamp $(TRAINING)/prepare.stamp $(SEED_STAMPS) $(SEEDS_NEW)

on = --device $(DEVICE)
$(RUN)/prepare.stamp: FLAGS = $(if $(RAW_PATH),--data $(RAW_WORD))
$(RUN)/prepare.stamp: STAMP = $(RAW_WORD)
$(RUN)/train.stamp:   FLAGS = --data $(RUN)/prepare $(on)$(if $(filter-out 1,$(GPUS)), --ranks $(GPUS))
$(RUN)/extract.stamp: FLAGS = --model $(TRAINING)/train --data $(TRAINING)/prepare $(on)
$(RUN)/probe.stamp:   FLAGS = --features $(RUN)/extract $(on)
$(RUN)/sample.stamp:  FLAGS = --model $(TRAINING)/train $(on)
$(RUN)/fid.stamp:     FLAGS = --samples $(RUN)/sample$(SEED_RUNS:%= --samples $(RUN)/%) --data $(TRAINING)/prepare $(on)
$(RUN)/fid.stamp:     private STAMP = $(SEEDS)

# What follows training, for each snapshot of it (train.snapshots) as for its final weights: links and stamps of epoch N
# are in $(RUN)/epoch-N, made by a make of their own that takes the training from here.
snapshots: $(RUN)/train.stamp $(RUN)/prepare.stamp
	@for weights in $$(ls $(RUN)/train/weights 2>/dev/null | sed -n 's/^\(epoch-[0-9]*\)\.safetensors$$/\1/p' | sort -t- -k2n); do \
	    $(MAKE) --no-print-directory extract probe sample fid P=$(P)/$$weights TRAINING=$(RUN) CFG=$(CFG) \
	        SET="$(strip $(SET) extract.weights=$$weights sample.weights=$$weights)" || exit 1; \
	done

# One page of the runs RUNS, as far as they are. That of several runs is linked in a directory called by all of them.
RUNS  ?= $(P)
SPACE := $() $()
report: $(REPORT)
	@$(REPORT) --store $(STORE) --link $(DATA)/runs/$(subst $(SPACE),+,$(strip $(RUNS)))/report $(RUNS:%=$(DATA)/runs/%)
