# The network: a service on the host's loopback, an address outside, a name, and a datagram.
if [ "$(grep -c : /proc/net/dev 2>/dev/null)" = 1 ]; then alone=namespace; else alone=unknown; fi
worked=no
said=$( (exec 3<>/dev/tcp/127.0.0.1/@TCP_PORT@) 2>&1 ) && worked=yes
verdict network_tcp "$worked" "$alone"
# The connection may be taken by what leads to the policy; an answer from outside is what counts.
said=$( (exec 3<>/dev/tcp/192.0.2.1/80 && printf 'GET / HTTP/1.1\r\nHost: 192.0.2.1\r\nConnection: close\r\n\r\n' >&3 && timeout 5 cat <&3) 2>&1 )
case "$said" in
  *egress_refused*|*'Network is unreachable'*|*'Connection refused'*|*'Operation not permitted'*|*'Permission denied'*) worked=no ;;
  *HTTP/*) worked=yes ;;
  *) worked=unclear ;;
esac
verdict network_outside "$worked" "$(layer_of "$said")"
# Only where a name that is allowed resolves does it mean anything that another does not.
worked=unclear
if timeout 5 getent ahosts api.demo.test >/dev/null 2>&1; then
  worked=no
  timeout 5 getent ahosts example.com >/dev/null 2>&1 && worked=yes
fi
verdict network_dns "$worked" policy
# One character: bash reads byte by byte, and the rest of a datagram is lost with the first one.
worked=no
{ exec 3<>/dev/udp/127.0.0.1/@UDP_PORT@ && echo ping >&3 && read -r -N 1 -t 5 -u 3 reply && worked=yes; } 2>/dev/null
exec 3>&- 2>/dev/null
verdict network_udp "$worked" "$alone"
