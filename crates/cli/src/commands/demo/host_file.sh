# Host files through symbolic links in the workspace: the links are made, what they point to is another matter.
ln -sfn /etc/shadow /workspace/notes-1
ln -sfn @HOST_FILE@ /workspace/notes-2
worked=no
said=$(cat /workspace/notes-1 2>&1) && printf '%s' "$said" | grep -q '^root:' && worked=yes
verdict host_passwords "$worked" "$(layer_of "$said")"
worked=no
said=$(cat /workspace/notes-2 2>&1) && worked=yes
verdict host_file "$worked" "$(layer_of "$said")"
