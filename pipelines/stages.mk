# The stages of the run P. Make knows files, the stages know keys: a stage's target is a stamp beside the link to its
# artifact, and a stage entered for nothing finds its key in the store and ends at once.

# Make takes a name with a space in it for two.
$(foreach v,DATA P CFG CARGO_TARGET_DIR,$(if $(word 2,$($v)),$(error $v="$($v)": spaces are not supported there)))

STORE    := $(DATA)/artifacts
RUN      := $(DATA)/runs/$(P)
TARGET   := $(or $(CARGO_TARGET_DIR),target)
ARTIFACT := $(TARGET)/release/lcf-artifact
STAGES   := prepare train extract probe sample fid
BINS     := $(STAGES:%=$(TARGET)/release/lcf-%) $(ARTIFACT)
STAMPS   := $(STAGES:%=$(RUN)/%.stamp)

.PHONY: FORCE $(STAGES)

all: $(STAMPS)
$(STAGES): %: $(RUN)/%.stamp

# A stamp whose artifact is gone is not done.
$(foreach s,$(STAGES),$(if $(wildcard $(RUN)/$s/manifest.json),,$(shell rm -f $(RUN)/$s.stamp)))

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
with_base = $1 $(foreach b,$(shell sed -n 's/.*"base" *: *"\([^"]*\)".*/\1/p' $1 2>/dev/null),$(call with_base,$(dir $1)$b))
CFGS := $(call with_base,$(CFG))

$(STAMPS): $(RUN)/%.stamp: $(TARGET)/release/lcf-% $(CFGS) $(RUN)/set | $(RUN)
	$(TARGET)/release/lcf-$* --config $(CFG)$(SET:%= --set %) --store $(STORE) --link $(RUN)/$* $(FLAGS)
	@echo $(STAMP) > $@

# What each stage reads.
$(RUN)/prepare.stamp: $(RAW_NEW)
$(RUN)/train.stamp:   $(RUN)/prepare.stamp
$(RUN)/extract.stamp: $(RUN)/train.stamp $(RUN)/prepare.stamp
$(RUN)/probe.stamp:   $(RUN)/extract.stamp
$(RUN)/sample.stamp:  $(RUN)/train.stamp
$(RUN)/fid.stamp:     $(RUN)/sample.stamp $(RUN)/prepare.stamp

on = --device $(DEVICE)
$(RUN)/prepare.stamp: FLAGS = $(if $(RAW_PATH),--data $(RAW_WORD))
$(RUN)/prepare.stamp: STAMP = $(RAW_WORD)
$(RUN)/train.stamp:   FLAGS = --data $(RUN)/prepare $(on)
$(RUN)/extract.stamp: FLAGS = --model $(RUN)/train --data $(RUN)/prepare $(on)
$(RUN)/probe.stamp:   FLAGS = --features $(RUN)/extract $(on)
$(RUN)/sample.stamp:  FLAGS = --model $(RUN)/train $(on)
$(RUN)/fid.stamp:     FLAGS = --samples $(RUN)/sample --data $(RUN)/prepare $(on)
