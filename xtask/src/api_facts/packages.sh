# Unpacks the Go packages with the Kubernetes API types under $1, with an apt of its own: own lists, own cache, own
# sources. Of the machine's apt it uses the mirror and the transport settings, and it changes nothing of it. Prints, per
# package, one line "<name> <version>". Of the versions on offer the lowest that is at least $2 is taken: it has every
# field of that release.
set -euo pipefail
staging=$1
wanted=$2
packages=(golang-k8s-api-dev golang-k8s-apimachinery-dev)

fail() { echo "error: $*" >&2; exit 1; }
command -v apt-get >/dev/null || fail "apt-get is not here: the facts come from Debian packages"

mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null |
    grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n 1 | tr -d ' ') || true
[[ -n $mirror ]] || fail "no Debian mirror in the machine's apt sources"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[[ -f $keyring ]] || fail "$keyring is missing (package debian-archive-keyring)"

mkdir -p "$staging"/{state/lists/partial,cache/archives/partial,empty,packages,root}
for suite in trixie sid; do
    echo "deb [signed-by=$keyring] $mirror $suite main"
done >"$staging/sources.list"
cat >"$staging/apt.conf" <<END
Dir::Etc::sourcelist "$staging/sources.list";
Dir::Etc::sourceparts "$staging/empty";
Dir::Etc::preferencesparts "$staging/empty";
Dir::State "$staging/state";
Dir::State::status "$staging/state/status";
Dir::Cache "$staging/cache";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
APT::Sandbox::User "root";
END
touch "$staging/state/status"
export APT_CONFIG=$staging/apt.conf

apt-get -qq update >&2
cd "$staging/packages"
for package in "${packages[@]}"; do
    version=$(apt-cache madison "$package" | awk '{print $3}' | sort -Vu |
        while read -r version; do
            if dpkg --compare-versions "$version" ge "$wanted"; then echo "$version"; break; fi
        done)
    [[ -n $version ]] || fail "the mirror offers no $package of version $wanted or later"
    apt-get -qq download "$package=$version" >&2
    dpkg-deb -x "$package"_*.deb "$staging/root"
    echo "$package $version"
done
