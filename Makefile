# Builds the filter, its helper, their manual pages and completions, and
# installs them:
#
#     make && sudo make install
#     sudo make uninstall
#
# Give both the same PREFIX, FILTERDIR and DESTDIR. debian/ makes a package of it.

PREFIX ?= /usr/local
BINDIR ?= $(PREFIX)/bin
MANDIR ?= $(PREFIX)/share/man
ZSHDIR ?= $(PREFIX)/share/zsh/site-functions
# Where nbdkit looks for --filter=libpause.
FILTERDIR ?= $(shell pkg-config --variable=filterdir nbdkit)
CARGO_TARGET_DIR ?= target

built = $(CARGO_TARGET_DIR)/release
nbdkit = $(shell pkg-config --modversion nbdkit)
version = $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' Cargo.toml)

# For each file its permissions, its name where it was built, and its place.
define FILES
644 libpause.so $(FILTERDIR)/nbdkit-libpause-filter.so
644 nbdkit-libpause-filter.1 $(MANDIR)/man1/nbdkit-libpause-filter.1
755 nbdkit-pause $(BINDIR)/nbdkit-pause
644 nbdkit-pause.1 $(MANDIR)/man1/nbdkit-pause.1
644 nbdkit-pause.bash $(PREFIX)/share/bash-completion/completions/nbdkit-pause
644 nbdkit-pause.zsh $(ZSHDIR)/_nbdkit-pause
644 nbdkit-pause.fish $(PREFIX)/share/fish/vendor_completions.d/nbdkit-pause.fish
endef
export FILES
each = printf '%s\n' "$$FILES" | while read -r mode name place; do
pod2man = pod2man --section=1 --center=nbdkit --release='libpause $(version)'

SHELL = /bin/bash
.SHELLFLAGS = -euo pipefail -c
.PHONY: all install uninstall is-built is-free

all:
	cargo build --release --locked --target-dir "$(CARGO_TARGET_DIR)"
# nbdkit-pause-filter(1) is the page of nbdkit's own filter.
	$(pod2man) --name=NBDKIT-LIBPAUSE-FILTER nbdkit-pause-filter.pod "$(built)/nbdkit-libpause-filter.1"
	$(pod2man) --name=NBDKIT-PAUSE nbdkit-pause.pod "$(built)/nbdkit-pause.1"
	for shell in bash zsh fish; do \
	    "$(built)/nbdkit-pause" completions $$shell >"$(built)/nbdkit-pause.$$shell"; done

# A running server has the old filter mapped, and another may be starting. So the
# new one is complete before it takes the old one's name, and the old file stays as
# it is.
install: is-built is-free
	@$(each) \
	    install -D -T -m $$mode -- "$(built)/$$name" "$(DESTDIR)$$place.new"; \
	    mv -f -T -- "$(DESTDIR)$$place.new" "$(DESTDIR)$$place"; \
	    printf '%s\n' "$(DESTDIR)$$place"; done

uninstall: is-free
	@$(each) rm -fv -- "$(DESTDIR)$$place" "$(DESTDIR)$$place.new"; done

# Root installs, and should build nothing. A filter has the version of its nbdkit
# in it, and nbdkit loads no other.
is-built:
	@$(each) [ -f "$(built)/$$name" ] || { \
	    echo "$(built)/$$name is missing. First, and not as root: make." \
	        "Or give its CARGO_TARGET_DIR" >&2; exit 1; }; done
	@LC_ALL=C grep -qaP '$(subst .,\.,$(nbdkit))\x00' "$(built)/libpause.so" || { \
	    echo "$(built)/libpause.so was built for another nbdkit than $(nbdkit)." \
	        "First, and not as root: make" >&2; exit 1; }

# A package's files are for the package manager to replace and to remove.
is-free:
	@[ -n "$(FILTERDIR)" ] || { echo "Where are nbdkit's filters? Give FILTERDIR=FOLDER" >&2; exit 1; }
	@[ -n "$(DESTDIR)" ] || $(each) \
	    ! dpkg-query --search "$$place" 2>/dev/null || { \
	        echo "Leave it to that package, or remove the package first" >&2; exit 1; }; done
