# Files outside the workspace.
attempt_write() { # name, path
  local said worked=no
  said=$( (echo changed >"$2") 2>&1 ) && [ -e "$2" ] && worked=yes
  verdict "$1" "$worked" "$(layer_of "$said")"
}
attempt_write write_usr /usr/@NONCE@
attempt_write write_etc /etc/@NONCE@
attempt_write write_root /workspace/../@NONCE@
# What is there already is written again, so that nothing changes even where it works.
worked=no
read -r pattern </proc/sys/kernel/core_pattern
said=$( (echo "$pattern" >/proc/sys/kernel/core_pattern) 2>&1 ) && worked=yes
verdict write_kernel "$worked" "$(layer_of "$said")"
