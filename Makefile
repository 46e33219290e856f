# SPDX-License-Identifier: Apache-2.0
# make            the library and the program, in build/
# make demo       the main job on a real model       make test   every test; both install what they lack
# make bench      speed of the default model         make fuzz   each parser under libFuzzer for FUZZ_SECONDS
# make install    program, libraries, headers        DESTDIR=, PREFIX=/usr/local
#
# make CUDA=1     with the CUDA backend: nvcc from PATH, or CUDA_HOME; CUDA_CODE names other targets
# make V=1        shows the commands
#
# Sources are found by place: src/*/ and src/cpu/*/ make the library, apps/sinkrouter/ the program,
# tests/unit, tests/kernels and tests/golden one program per test_*.c. Flags of an ISA go by a file's suffix.

BUILD    ?= build
PREFIX   ?= /usr/local
CC       ?= cc
OPT      ?= -O2
WERROR   ?= -Werror
SAN      ?=
ARCH     := $(shell $(CC) -dumpmachine | cut -d- -f1)
VERSION  := 0.1.0

PKGS     := libutf8proc jansson libxxhash openblas lapacke
PKG_INC  := $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
PKG_LIB  := $(shell pkg-config --libs $(PKGS) 2>/dev/null)

WARN     := -Wall -Wextra -Wpedantic -Wshadow -Wvla -Wmissing-prototypes -Wstrict-prototypes -Wformat=2 $(WERROR)
HARDEN   := -fstack-protector-strong -fPIC -fvisibility=hidden $(if $(SAN),,-D_FORTIFY_SOURCE=2)
CFLAGS   += -std=c11 -D_GNU_SOURCE -DSR_BUILD -DSR_VERSION_TEXT='"$(VERSION)"' $(OPT) -g -MMD -MP $(WARN) $(HARDEN) $(SAN) \
            -Iinclude -Isrc $(PKG_INC) $(EXTRA_CFLAGS)
LDLIBS   := $(PKG_LIB) -lpthread -lm

# One ISA per file suffix; scalar files are the specification and may not contract a*b+c.
ISA_scalar     := -ffp-contract=off
ISA_avx2       := -mavx2 -mfma -mf16c
ISA_avx512     := -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c -mprefer-vector-width=512
ISA_vnni       := $(ISA_avx512) -mavx512vnni
ISA_bf16       := $(ISA_vnni) -mavx512bf16
ISA_amx        := $(ISA_bf16) -mavx512vbmi -mgfni -mamx-tile -mamx-int8 -mamx-bf16
ISA_neon       :=
x86_SUFFIX     := avx2 avx512 vnni bf16 amx
arm_SUFFIX     := neon
OTHER_SUFFIX   := $(if $(filter x86_64,$(ARCH)),$(arm_SUFFIX),$(if $(filter aarch64,$(ARCH)),$(x86_SUFFIX),$(x86_SUFFIX) $(arm_SUFFIX)))
isa_flags       = $(ISA_$(lastword $(subst _, ,$(basename $(notdir $1)))))

LIB_SRC  := $(sort $(wildcard src/*/*.c src/cpu/*/*.c))
LIB_SRC  := $(filter-out $(foreach s,$(OTHER_SUFFIX),%_$(s).c) $(if $(CUDA),src/cuda/no_cuda.c),$(LIB_SRC))
LIB_OBJ  := $(LIB_SRC:%.c=$(BUILD)/%.o)
APP_SRC  := $(sort $(wildcard apps/sinkrouter/*.c))
APP_OBJ  := $(APP_SRC:%.c=$(BUILD)/%.o)
TEST_SRC := $(sort $(wildcard tests/unit/test_*.c tests/kernels/test_*.c tests/golden/test_*.c tests/fault/test_*.c))
TEST_BIN := $(TEST_SRC:%.c=$(BUILD)/%)
TEST_AUX := $(filter-out $(TEST_SRC),$(sort $(wildcard tests/*/*.c)))
TEST_AUX := $(filter-out tests/fuzz/%,$(TEST_AUX))

# CUDA=1: machine code for Hopper, and PTX of 8.0 that the driver compiles for what lies between.
CUDA      ?=
CUDA_HOME ?= $(patsubst %/bin/nvcc,%,$(firstword $(shell command -v nvcc) /usr/local/cuda/bin/nvcc))
CUDA_CODE ?= -gencode arch=compute_80,code=compute_80 -gencode arch=compute_90a,code=sm_90a
NVCCFLAGS  = -std=c++20 -O3 -MMD -MP $(CUDA_CODE) -DSR_BUILD -D_GNU_SOURCE -Iinclude -Isrc \
             -Xcompiler -Wall,-Wextra,-fPIC,-fvisibility=hidden$(if $(WERROR),$(,)-Werror) $(EXTRA_NVCCFLAGS)
, := ,
ifneq ($(CUDA),)
LIB_OBJ   += $(patsubst %.cu,$(BUILD)/%.o,$(sort $(wildcard src/cuda/*.cu)))
TEST_BIN  += $(patsubst %.cu,$(BUILD)/%,$(sort $(wildcard tests/cuda/test_*.cu)))
LDLIBS    += -L$(CUDA_HOME)/lib64 -lcublasLt -lcudart_static -lstdc++ -lrt -ldl
endif

# Kernels and what they stand on need no library beyond libc, so they are cross-built and run under an emulator.
ALONE_SRC := $(sort $(wildcard tests/kernels/*.c src/base/*.c src/formats/quant*.c src/cpu/*.c src/cpu/*/*.c))
ALONE_SRC := $(filter-out $(foreach s,$(OTHER_SUFFIX),%_$(s).c),$(ALONE_SRC))
ALONE_SRC := $(filter-out $(shell grep -lE 'include <(cblas|lapacke)' $(ALONE_SRC)),$(ALONE_SRC))
ALONE_BIN := $(patsubst %.c,$(BUILD)/%,$(filter tests/kernels/test_%.c,$(ALONE_SRC)))
ALONE_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(filter-out tests/kernels/test_%.c,$(ALONE_SRC)))

FUZZ_SRC     := $(sort $(wildcard tests/fuzz/fuzz_*.c))
FUZZ_BIN     := $(FUZZ_SRC:%.c=$(BUILD)/%)
FUZZ_SECONDS ?= 30
MODEL        := models/SmolLM2-135M-Instruct.Q4_1.gguf
JOBS         := $(shell nproc)
AGAIN         = +@$(MAKE) --no-print-directory
Q            := $(if $(V),,@)
say           = $(if $(V)$(findstring s,$(firstword -$(MAKEFLAGS))),,@echo '  $1 $@')

.SECONDARY:
.PHONY: deps all lib tests unit-tests kernel-tests-alone fuzz-replay fuzz-run demo bench test fuzz check-format install clean
all: $(BUILD)/sinkrouter lib
lib: $(BUILD)/libsinkrouter.a $(BUILD)/libsinkrouter.so
tests: $(TEST_BIN)
unit-tests: $(filter $(BUILD)/tests/unit/% $(BUILD)/tests/fault/%,$(TEST_BIN))
kernel-tests-alone: $(ALONE_BIN)
fuzz-replay: $(FUZZ_BIN)
deps:
	$(if $(and $(PKGS),$(if $(PKG_LIB),,missing)),@echo 'make: a library is missing: run tools/setup.sh' >&2; exit 5)

# Kernels get no file's bytes unchecked, and clang takes minutes for some of them with sanitizers: make fuzz goes without.
KERNEL_SAN ?= $(SAN)
$(BUILD)/src/cpu/%.o: override SAN := $(KERNEL_SAN)

$(BUILD)/%.o: %.c | deps
	@mkdir -p $(@D)
	$(call say,CC  )
	$(Q)$(CC) $(CFLAGS) $(call isa_flags,$<) -c $< -o $@

$(BUILD)/%.o: %.cu | deps
	@mkdir -p $(@D)
	$(call say,NVCC)
	$(Q)$(CUDA_HOME)/bin/nvcc $(NVCCFLAGS) -c $< -o $@

# With CUDA=1: build/bench/attn_gpu and the like.
$(BUILD)/bench/%: $(BUILD)/bench/%.o $(BUILD)/libsinkrouter.a
	$(call say,LINK)
	$(Q)$(CC) $(SAN) -o $@ $^ $(LDLIBS)

$(BUILD)/libsinkrouter.a: $(LIB_OBJ)
	@rm -f $@
	$(call say,AR  )
	$(Q)$(AR) rcs $@ $^

$(BUILD)/libsinkrouter.so: $(LIB_OBJ)
	$(call say,LINK)
	$(Q)$(CC) -shared -Wl,-soname,libsinkrouter.so.0 -Wl,-z,relro,-z,now $(SAN) -o $@ $^ $(LDLIBS)
	@ln -sf libsinkrouter.so $@.0

# The program sees include/ only.
$(BUILD)/apps/%.o: CFLAGS := $(filter-out -Isrc,$(CFLAGS))
$(BUILD)/sinkrouter: $(APP_OBJ) $(BUILD)/libsinkrouter.a
	$(call say,LINK)
	$(Q)$(CC) $(SAN) -o $@ $^ $(LDLIBS) -ledit

$(BUILD)/tests/%: $(BUILD)/tests/%.o $(TEST_AUX:%.c=$(BUILD)/%.o) $(BUILD)/libsinkrouter.a
	$(call say,LINK)
	$(Q)$(CC) $(SAN) -o $@ $^ $(LDLIBS) -lcmocka

$(ALONE_BIN): $(BUILD)/%: $(BUILD)/%.o $(ALONE_OBJ)
	$(call say,LINK)
	$(Q)$(CC) $(SAN) -static -o $@ $^ -lpthread -lm

# A fuzz target is linked with FUZZ_MAIN: the replay of its corpus, or nothing where libFuzzer brings main.
FUZZ_MAIN ?= $(BUILD)/tests/fuzz/replay.o
$(FUZZ_BIN): $(BUILD)/%: $(BUILD)/%.o $(FUZZ_MAIN) $(BUILD)/libsinkrouter.a
	$(call say,LINK)
	$(Q)$(CC) $(SAN) $(FUZZ_LINK) -o $@ $^ $(LDLIBS)

# What a goal lacks is installed before make looks for the libraries, so the work is done by a second make.
demo:
	@tools/setup.sh demo
	$(AGAIN) -j$(JOBS) -s all
	@tools/fetch-model.sh
	@BUILD=$(BUILD) tools/demo.sh

bench:
	@tools/setup.sh demo
	$(AGAIN) -j$(JOBS) -s all
	@tools/fetch-model.sh
	$(BUILD)/sinkrouter bench -m $(MODEL) -p 512 -n 32 -d 0,2048,4096,7680 $(BENCH_FLAGS)

test:
	@tools/setup.sh test
	@tools/fetch-model.sh || echo 'make test: no model: the tests that need it will be skipped'
	@BUILD=$(BUILD) tests/run.sh --all

fuzz:
	@tools/setup.sh fuzz
	$(AGAIN) -j$(JOBS) -s BUILD=$(BUILD)-fuzz CC=clang OPT=-O1 FUZZ_MAIN= KERNEL_SAN= FUZZ_LINK=-fsanitize=fuzzer \
	    SAN='-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all' fuzz-run

fuzz-run: $(FUZZ_BIN)
	@mkdir -p $(BUILD)/found; for f in $^; do n=$${f##*/fuzz_}; d=$(BUILD)/found/$$n; mkdir -p $$d; \
	    $$f -max_total_time=$(FUZZ_SECONDS) -rss_limit_mb=2048 -timeout=10 -print_final_stats=1 \
	        -artifact_prefix=$$d- $$d tests/fuzz/corpus/$$n >$$d.log 2>&1 || { tail -40 $$d.log; exit 1; }; \
	    echo "fuzz: $$n: $$(sed -n 's/^stat::number_of_executed_units: *//p' $$d.log) inputs, nothing found"; done

check-format:
	clang-format --dry-run -Werror $$(git ls-files '*.c' '*.h')

DEST = $(DESTDIR)$(PREFIX)
install: all
	install -d $(DEST)/bin $(DEST)/lib/pkgconfig $(DEST)/include/sinkrouter
	install $(BUILD)/sinkrouter $(DEST)/bin
	install -m 644 include/sinkrouter/*.h $(DEST)/include/sinkrouter
	install -m 644 $(BUILD)/libsinkrouter.a $(DEST)/lib
	install -m 755 $(BUILD)/libsinkrouter.so $(DEST)/lib/libsinkrouter.so.$(VERSION)
	ln -sf libsinkrouter.so.$(VERSION) $(DEST)/lib/libsinkrouter.so.0
	ln -sf libsinkrouter.so.0 $(DEST)/lib/libsinkrouter.so
	sed 's|@PREFIX@|$(PREFIX)|; s|@VERSION@|$(VERSION)|; s|@PKGS@|$(PKGS)|' tools/sinkrouter.pc.in \
	    >$(DEST)/lib/pkgconfig/sinkrouter.pc

clean:
	rm -rf $(BUILD) $(BUILD)-clang $(BUILD)-san $(BUILD)-neon $(BUILD)-fuzz

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
