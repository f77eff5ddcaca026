# SPDX-License-Identifier: MIT
#
# A thin front for Meson. Everything lands in $(BUILD). MESON_ARGS are those of its first configuration, or change it:
# a folder remembers them, so that `make MESON_ARGS=--prefix=...` and a plain `make` may follow each other in any order.
BUILD ?= build
MESON_ARGS ?=
export MESON_ARGS
BENCH_BUILD ?= build-release
COVERAGE_BUILD ?= build-coverage
DEMO_ARGS ?=
TEST_ARGS ?=
MUTANTS_ARGS ?=

all: build

## build     compile: build/sublet, build/libsublet.so, build/libsublet-bridge.so (the default)
build: deps-build $(BUILD)/build.ninja
	@test -z "$$MESON_ARGS" || test "$$MESON_ARGS" = "$$(cat $(BUILD)/meson-args 2>/dev/null)" || { \
		meson configure $(BUILD) $(MESON_ARGS) && printf '%s\n' "$$MESON_ARGS" >$(BUILD)/meson-args; }
	@ninja -C $(BUILD) $(NINJA_ARGS)

## run       the demonstration: Redis in lent memory while a capture device claims buffers; three kinds of buffers
run: deps-run build
	@$(BUILD)/sublet demo $(DEMO_ARGS)

## test      every test; the last line counts them
test: deps-test build
	@tools/test.sh $(BUILD) $(TEST_ARGS)

## mutants   bugs planted one after the other, and who catches them; MUTANTS_ARGS="--only NAME --suites unit"
mutants: deps-test build
	@tools/mutants.py --folder $(abspath $(BUILD))/mutants $(MUTANTS_ARGS)

## coverage  lines and branches of src/core that the tests reach; docs/coverage.md says why not all
coverage: deps-test
	@tools/coverage.sh $(COVERAGE_BUILD)

## torture   real programs under chaos, claims and kills for SECONDS=600; BACKINGS=, PERIODS=, SEED= choose
torture: deps-test build
	@SUBLET=$(BUILD)/sublet SUBLET_BUILD=$(BUILD) python3 tests/clients/torture.py --budget $(or $(SECONDS),600) \
		$(if $(BACKINGS),--backings "$(BACKINGS)") $(if $(PERIODS),--periods "$(PERIODS)") $(if $(SEED),--seed $(SEED))

## programs  longer real programs, plain and lent: containers, debuggers, sound, interpreters, gcc, git, xz; PROGRAMS="NAME..." chooses
programs: deps-programs build
	@SUBLET=$(BUILD)/sublet SUBLET_BUILD=$(BUILD) PYTHONDONTWRITEBYTECODE=1 python3 tests/programs/programs.py $(PROGRAMS)

## fuzz      every fuzz target for SECONDS=60; what they find is in build/fuzz/TARGET
fuzz: deps-test
	@mkdir -p $(BUILD)
	@python3 tests/fuzz/fuzz.py . $(BUILD) $(or $(SECONDS),60)

## bench     the benchmarks, in a release build of their own
bench: deps-test
	@test -x bench/run || { echo "sublet: bench/run is not there" >&2; exit 1; }
	@test -f $(BENCH_BUILD)/build.ninja || meson setup $(BENCH_BUILD) --buildtype=release $(MESON_ARGS)
	@ninja -C $(BENCH_BUILD)
	@bench/run $(BENCH_BUILD)

## install   into /usr/local, or where MESON_ARGS=--prefix=... says or said; DESTDIR is honoured
install: build
	@meson install -C $(BUILD) --no-rebuild

## clean     remove the build folders
clean:
	@rm -rf $(BUILD) $(BENCH_BUILD) $(COVERAGE_BUILD)

## help      this list
help:
	@sed -n 's/^## /  make /p' $(firstword $(MAKEFILE_LIST))

$(BUILD)/build.ninja: | deps-build
	@meson setup $(BUILD) $(MESON_ARGS)
	@printf '%s\n' "$$MESON_ARGS" >$(BUILD)/meson-args

deps-build deps-run deps-test deps-programs:
	@tools/deps.sh $(@:deps-%=%)

.PHONY: all build run test mutants coverage torture programs fuzz bench install clean help deps-build deps-run deps-test deps-programs
