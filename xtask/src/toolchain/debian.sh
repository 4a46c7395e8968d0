#!/usr/bin/env bash
# Builds, under the prefix given as $1, what compiles BPF programs written in Rust on a machine whose rustup can neither
# fetch `rust-src` nor another toolchain:
#
#   * Debian's rustc (package rustc-web), which comes with a precompiled libcore for the bpf targets. The packages are
#     unpacked below the prefix and never installed, so neither /usr nor ~/.rustup changes;
#   * bpf-linker from the crate registry, linked to the libLLVM of that rustc.
#
# $2 is the version of bpf-linker. Prints one line per step. `$1/stamp`, written last, says that all of it is there.
# Use: `$1/bin/cargo-ebpf build --release`, a cargo with the environment which a crate on aya-ebpf needs.
set -euo pipefail

prefix=$1
linker=$2
format=1 # raised when what this script makes changes

step() { printf '    %s\n' "$*"; }
fail() { printf 'toolchain: %s\n' "$*" >&2; exit 1; }

mkdir -p "$(dirname "$prefix")"
exec 9>"$prefix.lock"
if ! flock --nonblock 9; then
    step "waiting for another process that builds $prefix"
    flock 9
fi

stamp="format $format, bpf-linker $linker"
if [[ -f $prefix/stamp && $(head -n1 "$prefix/stamp") == "$stamp" ]]; then
    step "ready: $(tail -n1 "$prefix/stamp") in $prefix"
    exit 0
fi

command -v apt-get >/dev/null || fail "neither rustup's nightly with rust-src and bpf-linker nor apt-get is here"
architecture=$(dpkg --print-architecture)
[[ $architecture == amd64 || $architecture == arm64 ]] || fail "no precompiled libcore for BPF is known on $architecture"

newest() { apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: //p' | grep -v '^(none)$' || true; }
dependencies() { apt-cache show "$1" | sed -n '0,/^Depends: /s/^Depends: //p' | tr ',|' '\n\n' | awk '{print $1}'; }

target=libstd-rust-web-dev-bpf
version=$(newest $target)
if [[ -z $version ]]; then
    step "apt-get update: $target is not in the package lists yet"
    apt-get -qq update
    version=$(newest $target)
    [[ -n $version ]] || fail "apt offers no $target: enable Debian's updates and security suites"
fi
runtime=$(dependencies "libstd-rust-web-dev=$version" | grep -xE 'libstd-rust-web-[0-9.]+' | head -n1)
llvm=$(dependencies "$runtime=$version" | grep -xE 'libllvm[0-9]+' | head -n1)
llvm_major=${llvm#libllvm}

staging=$prefix.staging
rm -rf "$staging"
mkdir -p "$staging/packages" "$staging/bin" "$staging/llvm/lib"

step "downloading rustc-web $version and $llvm (about 120 MB)"
(cd "$staging/packages" && apt-get -qq -o APT::Sandbox::User=root download "$llvm" \
    "rustc-web=$version" "$runtime=$version" "libstd-rust-web-dev=$version" "$target=$version" "rust-web-clippy=$version")
step "unpacking"
for package in "$staging"/packages/*.deb; do
    # Documentation and the big-endian target are read by nobody here.
    dpkg-deb --fsys-tarfile "$package" |
        tar --extract --directory "$staging" --exclude='./usr/share' --exclude='*/bpfeb-unknown-none'
done
rm -rf "$staging/packages"
driver=$(find "$staging/usr/lib" -name 'librustc_driver-*.so' -print -quit)
libraries=$(basename "$(dirname "$driver")")

cat >"$staging/bin/rustc" <<'WRAPPER'
#!/bin/sh
# Debian's rustc from where it was unpacked.
here=$(dirname "$(dirname "$(readlink -f "$0")")")
export LD_LIBRARY_PATH="$here/usr/lib/@libraries@${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
exec "$here/usr/bin/rustc" "$@"
WRAPPER
cat >"$staging/bin/cargo-ebpf" <<'WRAPPER'
#!/bin/sh
# cargo for a crate on aya-ebpf: target bpfel, precompiled libcore, bpf-linker, BTF. A build script may call it, with a target
# directory of its own; what the outer cargo put into the environment is replaced.
here=$(dirname "$(dirname "$(readlink -f "$0")")")
unset RUSTC_WRAPPER RUSTC_WORKSPACE_WRAPPER RUSTFLAGS RUSTDOC
export RUSTC="$here/bin/rustc"
export RUSTC_BOOTSTRAP=aya_ebpf # the one crate that needs an unstable feature: asm for the bpf target
export CARGO_BUILD_TARGET=bpfel-unknown-none
export CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER="$here/bin/bpf-linker"
separator=$(printf '\037')
export CARGO_ENCODED_RUSTFLAGS="--cfg=bpf_target_arch=\"${BPF_TARGET_ARCH:-$(uname -m)}\"${separator}-Cdebuginfo=2${separator}-Clink-arg=--btf"
if [ "${1-}" = clippy ]; then
    export PATH="$here/usr/bin:$PATH" LD_LIBRARY_PATH="$here/usr/lib/@libraries@${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
fi
exec cargo "$@"
WRAPPER
sed -i "s|@libraries@|$libraries|" "$staging/bin/rustc" "$staging/bin/cargo-ebpf"
chmod +x "$staging/bin/rustc" "$staging/bin/cargo-ebpf"
shared=$(basename "$(find "$staging/usr/lib/$libraries" -name "libLLVM.so.$llvm_major*" -type f -print -quit)")
for name in libLLVM.so "$shared"; do # the name to link with, and the name to load
    ln -sfn "../../usr/lib/$libraries/$shared" "$staging/llvm/lib/$name"
done

missing=$(LD_LIBRARY_PATH="$staging/usr/lib/$libraries" \
    ldd "$staging/usr/lib/$libraries"/lib{LLVM.so.,rustc_driver-}* | awk '/not found/ {print $1}' | sort -u)
if [[ -n $missing ]]; then
    step "installing what $llvm depends on, for" $missing
    dependencies "$llvm" | xargs apt-get -qq install -y --no-install-recommends
fi

# bpf-linker finds libLLVM by an absolute path, so the tree takes its place before the linker is built.
rm -rf "$prefix"
mv "$staging" "$prefix"
step "building bpf-linker $linker for LLVM $llvm_major (about a minute)"
env -u RUSTC -u RUSTC_WRAPPER -u RUSTC_WORKSPACE_WRAPPER -u RUSTFLAGS -u CARGO_ENCODED_RUSTFLAGS -u CARGO_BUILD_TARGET \
    -u CARGO_BUILD_BUILD_DIR LLVM_PREFIX="$prefix/llvm" CARGO_TARGET_DIR="$prefix/build" \
    CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_STRIP=true \
    cargo install --quiet --locked --root "$prefix" --no-track \
    bpf-linker --version "$linker" --no-default-features --features "llvm-$llvm_major" 9>&-
rm -rf "$prefix/build"

step "compiling a program to see that the pieces fit"
trial=$(mktemp -d)
trap 'rm -rf "$trial"' EXIT
cat >"$trial/trial.rs" <<'PROGRAM'
#![no_std]
#![no_main]
#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
pub fn trial(ctx: *const u32) -> i32 { unsafe { (*ctx).wrapping_add(1) as i32 } }
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! { loop {} }
PROGRAM
"$prefix/bin/rustc" --edition 2024 --crate-type bin --target bpfel-unknown-none -Copt-level=3 -Cpanic=abort \
    -Cdebuginfo=2 -Clto=fat -Clinker="$prefix/bin/bpf-linker" -Clink-arg=--btf -o "$trial/trial" "$trial/trial.rs"
grep -qa '\.BTF\.ext' "$trial/trial" || fail "the linked object has no BTF"

printf '%s\n%s\n' "$stamp" "$("$prefix/bin/rustc" -V), $("$prefix/bin/bpf-linker" --version), LLVM $llvm_major" \
    >"$prefix/stamp"
step "ready: $(tail -n1 "$prefix/stamp") in $prefix"
