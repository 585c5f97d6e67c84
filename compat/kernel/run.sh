#!/usr/bin/env bash
# Attacks sandboxes on the kernel that Debian ships, under systemd and version 2 of control groups: in an emulated machine, so that
# it needs neither KVM nor a kernel of that kind here.
#
#   PALISADE_BIN    the binary to test (default: the release build)
#   KERNEL_PACKAGE  Debian's package of the kernel (default: linux-image-cloud-amd64)
#   KERNEL_SUITE    the release of Debian (default: bookworm)
#
# Exit code 0 when everything was refused, 1 when something was not, 3 when the machine cannot be had here; the last line says why.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname -- "$(dirname -- "$here")")
target=$root/target/kernel
package=${KERNEL_PACKAGE:-linux-image-cloud-amd64}
suite=${KERNEL_SUITE:-bookworm}
# Longer than this is a defect: emulated, it takes about seven minutes on two cores.
limit=15m

unable() {
  printf 'kernel: %s\n' "$*" >&2
  exit 3
}

fail() {
  printf 'kernel: %s\n' "$*" >&2
  exit 1
}

PALISADE_BIN=${PALISADE_BIN:-$root/target/x86_64-unknown-linux-gnu/release/palisade}
[ -x "$PALISADE_BIN" ] || fail "there is no binary at $PALISADE_BIN; run 'cargo build --release' or set PALISADE_BIN"
[ "$(uname -m)" = x86_64 ] || unable "only x86_64 machines are emulated so far"
[ "$EUID" -eq 0 ] || unable "a root file system is made as root"
PATH=$PATH:/usr/sbin:/sbin
missing=()
for tool in qemu-system-x86_64 mmdebstrap mkfs.ext4; do
  command -v "$tool" >/dev/null || missing+=("$tool")
done
[ ${#missing[@]} -eq 0 ] || unable "missing: ${missing[*]} (Debian: apt-get install qemu-system-x86 mmdebstrap e2fsprogs)"

mkdir -p "$target"
work=$(mktemp -d "$target/run.XXXXXX")
trap 'rm -rf -- "$work"' EXIT

# The machine's disk, made once for each kernel and state of this script: Debian with systemd, which has a session for each who logs
# in, and a user.
made=$target/$suite-$package-$(cat "$here/run.sh" "$here/attack.service" | cksum | cut -d ' ' -f 1)
if [ ! -e "$made/disk" ]; then
  rm -rf -- "$target/$suite-$package-"*
  tree=$work/tree
  include=systemd-sysv,dbus,dbus-user-session,libpam-systemd,$package
  for attempt in 1 2 3; do
    rm -rf -- "$tree"
    mmdebstrap --quiet --variant=minbase --include="$include" \
      --customize-hook='chroot "$1" useradd --create-home --uid 1000 --shell /bin/bash agent' \
      "$suite" "$tree" && break
    [ "$attempt" -lt 3 ] || unable "Debian's packages cannot be had"
    sleep $((attempt * 5))
  done
  cp "$here/attack.service" "$tree/etc/systemd/system/"
  ln -s ../attack.service "$tree/etc/systemd/system/multi-user.target.wants/"
  # The line on which everything is said is nobody's terminal.
  ln -s /dev/null "$tree/etc/systemd/system/serial-getty@ttyS0.service"
  echo overlay >"$tree/etc/modules-load.d/palisade.conf"
  : >"$tree/etc/machine-id"
  mkdir -p "$made" "$tree/palisade"
  cp "$tree"/boot/vmlinuz-* "$made/kernel"
  cp "$tree"/boot/initrd.img-* "$made/initrd"
  truncate -s 4G "$work/disk"
  mkfs.ext4 -q -d "$tree" "$work/disk"
  rm -rf -- "$tree"
  mv "$work/disk" "$made/disk"
fi

# What is tried, and where sandboxes live: with quotas of projects.
mkdir "$work/palisade"
cp "$PALISADE_BIN" "$work/palisade/palisade"
cp "$here/attack.sh" "$work/palisade/"
truncate -s 4G "$work/own"
mkfs.ext4 -q -O quota,project -E quotatype=prjquota -d "$work/palisade" "$work/own"
cp --sparse=always "$made/disk" "$work/disk"

log=$target/log
timeout --kill-after=10s "$limit" qemu-system-x86_64 \
  -accel tcg,thread=multi -cpu max -smp 2 -m 4G -nographic -no-reboot -nic none -vga none \
  -kernel "$made/kernel" -initrd "$made/initrd" \
  -append 'root=/dev/vda rw console=ttyS0 quiet panic=-1 systemd.show_status=0' \
  -drive file="$work/disk",if=virtio,format=raw,cache=unsafe \
  -drive file="$work/own",if=virtio,format=raw,cache=unsafe \
  </dev/null >"$log" 2>&1 || fail "the machine did not come to its end: $log"
sed -i 's/\r*$//' "$log"

# All but what was refused, and what every machine has; the whole is in the log.
grep -a -v -e '"result":"refused"' -e '"result":"held"' -e '"type":"guarantee"' -e '^ok ' "$log" | grep -a -E '^(==|FAIL |\{)' | cut -c 1-200 || true
for who in root agent; do
  for facility in 'memory limits' 'process limits' 'processor limits' freezer 'freezing, tried' 'egress network'; do
    grep -a -q "^ok   $who: $facility " "$log" || fail "$who has no ${facility% , tried}: $log"
  done
  grep -a -q "^== demo of $who: 0\$" "$log" || fail "the demo fails for $who: $log"
  for test in sandbox egress; do
    [ "$test $who" != 'egress root' ] || continue
    said=$work/$test-$who
    sed -n "/^== $test test of $who\$/,/^== end of $test test of $who\$/p" "$log" >"$said"
    grep -a -q '"type":"verdict"' "$said" || fail "the $test test of $who did not come to its end: $log"
    ! grep -a -q '"result":"through"' "$said" || fail "an attempt in the $test test of $who got through: $log"
    ! grep -a -q '"refused":0,.*"type":"guarantee"' "$said" || fail "a guarantee was not tried for $who: $log"
  done
done
! grep -a -q '"not_run":[1-9].*"type":"guarantee"' "$work/sandbox-root" || fail "some attempts of root's could not be made: $log"
count() { grep -a -c "$1" "$log" || true; }
printf 'kernel: %s: %s attempts, 0 got through, %s unclear, %s not to be made\n' "$(sed -n 's/^.*== kernel //p' "$log")" \
  "$(count '"type":"attempt"')" "$(count '"result":"unclear"')" "$(count '"result":"not run"')"
