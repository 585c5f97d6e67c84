# The way out: one service may be asked, with a credential that is not in here.
ask() { # where to, method, which host is named
  {
    exec 3<>"/dev/tcp/$1/@API_PORT@" &&
      printf '%s /whoami HTTP/1.1\r\nHost: %s:@API_PORT@\r\nAuthorization: Bearer %s\r\nConnection: close\r\n\r\n' \
        "$2" "$3" "$DEMO_TOKEN" >&3 &&
      timeout 10 cat <&3
  } 2>&1
}
refused() { # name of the attempt, what was answered
  case "$2" in *demo-service*) worked=yes ;; *egress_refused*) worked=no ;; *) worked=unclear ;; esac
  verdict "$1" "$worked" "$(layer_of "$2")"
}
echo "in here, DEMO_TOKEN is ${DEMO_TOKEN:-not set}"
ask api.demo.test GET api.demo.test | grep -a demo-service
refused egress_host "$(ask api.demo.test GET other.demo.test)"
refused egress_method "$(ask api.demo.test DELETE api.demo.test)"
refused egress_credential "$(ask files.demo.test GET files.demo.test)"
