# Shared by the attempts: what is printed is judged by what really happened, and the layer by what the kernel said.
layer_of() {
  case "$1" in
    *placeholder*) echo broker ;;
    *egress_refused*) echo policy ;;
    *'Read-only file system'*|*'No such file or directory'*|*'Not a directory'*) echo mount ;;
    *'Network is unreachable'*|*'Connection refused'*|*'Cannot assign requested address'*) echo namespace ;;
    *'Operation not permitted'*) echo capabilities ;;
    *'Permission denied'*) echo permissions ;;
    *'Function not implemented'*|*'Bad system call'*) echo seccomp ;;
    *'Resource temporarily unavailable'*) echo limit ;;
    *) echo unknown ;;
  esac
}
verdict() { # name, yes when it worked and no when it was refused, layer
  case "$2" in
    yes) echo "attempt=$1 outcome=SUCCEEDED layer=none" ;;
    no) echo "attempt=$1 outcome=refused layer=$3" ;;
    *) echo "attempt=$1 outcome=UNCLEAR layer=none" ;;
  esac
}
