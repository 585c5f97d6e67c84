# The worker's environment: its process, every process that can be seen, and what this shell was given.
worked=no
for environ in /proc/@PID@/environ /proc/[0-9]*/environ; do
  if { tr '\0' '\n' <"$environ"; } 2>/dev/null | grep -q '^PALISADE_DEMO_MARKER='; then worked=yes; fi
done
if env | grep -q -e '^PALISADE' -e '^ANTHROPIC'; then worked=yes; fi
# Where the process cannot even be seen, it is the process namespace that hides it.
if { tr '\0' ' ' </proc/@PID@/cmdline; } 2>/dev/null | grep -q demo; then layer=permissions; else layer=namespace; fi
verdict worker_environment "$worked" "$layer"
