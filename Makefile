# SPDX-License-Identifier: Apache-2.0
# make            the library and the program, in build/
# make demo       the main job on a real model;   make test   every test;   make install   PREFIX=/usr/local
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

PKGS     := libpcre2-8 libutf8proc jansson libxxhash openblas lapacke
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
ISA_amx        := $(ISA_bf16) -mamx-tile -mamx-int8 -mamx-bf16
ISA_neon       :=
x86_SUFFIX     := avx2 avx512 vnni bf16 amx
arm_SUFFIX     := neon
OTHER_SUFFIX   := $(if $(filter x86_64,$(ARCH)),$(arm_SUFFIX),$(if $(filter aarch64,$(ARCH)),$(x86_SUFFIX),$(x86_SUFFIX) $(arm_SUFFIX)))
isa_flags       = $(ISA_$(lastword $(subst _, ,$(basename $(notdir $1)))))

LIB_SRC  := $(sort $(wildcard src/*/*.c src/cpu/*/*.c))
LIB_SRC  := $(filter-out $(foreach s,$(OTHER_SUFFIX),%_$(s).c) src/cuda/%,$(LIB_SRC))
LIB_OBJ  := $(LIB_SRC:%.c=$(BUILD)/%.o)
APP_SRC  := $(sort $(wildcard apps/sinkrouter/*.c))
APP_OBJ  := $(APP_SRC:%.c=$(BUILD)/%.o)
TEST_SRC := $(sort $(wildcard tests/unit/test_*.c tests/kernels/test_*.c tests/golden/test_*.c tests/fault/test_*.c))
TEST_BIN := $(TEST_SRC:%.c=$(BUILD)/%)
TEST_AUX := $(filter-out $(TEST_SRC),$(sort $(wildcard tests/*/*.c)))
TEST_AUX := $(filter-out tests/fuzz/%,$(TEST_AUX))

.PHONY: all lib demo test check tests install clean format
all: $(BUILD)/sinkrouter $(BUILD)/libsinkrouter.so

lib: $(BUILD)/libsinkrouter.a $(BUILD)/libsinkrouter.so
tests: $(TEST_BIN)

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(call isa_flags,$<) -c $< -o $@

$(BUILD)/libsinkrouter.a: $(LIB_OBJ)
	@rm -f $@
	$(AR) rcs $@ $^

$(BUILD)/libsinkrouter.so: $(LIB_OBJ)
	$(CC) -shared -Wl,-soname,libsinkrouter.so.0 -Wl,-z,relro,-z,now $(SAN) -o $@ $^ $(LDLIBS)

# The program sees include/ only.
$(BUILD)/apps/%.o: CFLAGS := $(filter-out -Isrc,$(CFLAGS))
$(BUILD)/sinkrouter: $(APP_OBJ) $(BUILD)/libsinkrouter.a
	$(CC) $(SAN) -o $@ $^ $(LDLIBS) -ledit

$(BUILD)/tests/%: $(BUILD)/tests/%.o $(TEST_AUX:%.c=$(BUILD)/%.o) $(BUILD)/libsinkrouter.a
	$(CC) $(SAN) -o $@ $^ $(LDLIBS) -lcmocka

clean:
	rm -rf $(BUILD)

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
