# The keys of the worker and of the server, where they lie on the host.
worked=no
said=
for file in @KEY_FILES@; do
  if said=$(cat "$file" 2>&1); then worked=yes; fi
done
verdict worker_key "$worked" "$(layer_of "$said")"
