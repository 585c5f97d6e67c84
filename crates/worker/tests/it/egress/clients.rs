//! One page, fetched by the usual clients, each through the proxy and without knowing of it, opened and passed through.

use palisade_testkit::control_plane::FakeSession;

use super::prepared;
use super::world::{DIRECT, Nginx, World, has, policy, rule};
use crate::rig::Working;

const PAGE: &str = "a page of nginx";
const HOSTS: [&str; 2] = ["read.test", "pass.test"];

struct Clients {
    world: World,
    nginx: Nginx,
    working: Working,
    session: FakeSession,
}

impl Clients {
    async fn begin(change: impl FnOnce(&mut World)) -> Clients {
        let mut world = World::new().await;
        change(&mut world);
        let nginx = world.nginx(&HOSTS);
        let rules =
            [rule("read", "read.test", nginx.port, ", intercept: true"), rule("pass", "pass.test", nginx.port, "")];
        let (working, session) = world.begin(&policy(&rules), "");
        Clients { world, nginx, working, session }
    }

    /// Runs a client for each host, with and without the proxy's variables. `command` makes it of the URL and the host's name,
    /// and says what it must print.
    async fn each(&self, name: &str, command: impl Fn(&str, &str) -> String) -> Vec<String> {
        let mut shown = Vec::new();
        for host in HOSTS {
            for (how, before) in [("proxy", "env"), ("direct", DIRECT)] {
                let path = format!("/{name}-{how}");
                let url = format!("https://{host}:{}{path}", self.nginx.port);
                let printed = self.world.run(&self.session, &format!("{before} {}", command(&url, host))).await;
                assert!(printed.contains(PAGE), "{name} {how} {host}: {printed}");
                // It notes what it has served after it has answered.
                let wanted = if host == "read.test" { 1 } else { 2 };
                let served = || self.nginx.served().iter().filter(|line| line.contains(&path)).count();
                self.world.rig.fake.wait("nginx to note it", |_| (served() >= wanted).then_some(())).await;
                assert_eq!(served(), wanted, "{name} {how} {host}");
                shown.push(printed);
            }
            // What is opened is kept with its path; what is passed through, with its name.
            for how in ["proxy", "direct"] {
                let path = format!("/{name}-{how}");
                if host == "read.test" {
                    let record = self.world.recorded("the request", |record| record["path"] == *path).await;
                    assert_eq!(
                        (&record["allowed"], &record["rule"]),
                        (&true.into(), &"environment/read".into()),
                        "{record}"
                    );
                }
            }
        }
        let to = format!("pass.test:{}", self.nginx.port);
        let passed = |record: &&serde_json::Value| {
            record["kind"] == "connect" && record["to"] == *to && record["allowed"] == true
        };
        let connections = self.world.records().iter().filter(passed).count();
        assert!(connections >= 2, "{connections} connections were passed through");
        shown
    }

    async fn end(self) {
        self.working.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_wget_and_openssl() {
    if !has(&["nginx", "curl", "wget", "openssl"]) {
        return;
    }
    let clients = Clients::begin(|_| {}).await;
    clients.each("curl", |url, _| format!("curl -sS --fail --http1.1 {url}")).await;
    for printed in
        clients.each("curl-h2", |url, _| format!("curl -sS --fail --http2 -w '%{{http_version}}' {url}")).await
    {
        assert!(printed.ends_with('2'), "HTTP/2 was spoken: {printed}");
    }
    clients.each("wget", |url, _| format!("wget -q -O - {url}")).await;
    let port = clients.nginx.port;
    let ask = |url: &str, host: &str| {
        let path = url.rsplit('/').next().unwrap();
        format!(
            "bash -c 'printf \"GET /{path} HTTP/1.1\\r\\nHost: {host}:{port}\\r\\nConnection: close\\r\\n\\r\\n\" | \
             openssl s_client -quiet -verify_return_error -verify_hostname {host} -servername {host} \
             -connect {host}:{port} ${{HTTPS_PROXY:+-proxy ${{HTTPS_PROXY#http://}}}} 2>&1'"
        )
    };
    clients.each("openssl", ask).await;
    // Whose certificate it is says whether it was opened.
    for (host, theirs) in [("read.test", false), ("pass.test", true)] {
        let certificate = format!(
            "openssl s_client -connect {host}:{port} -servername {host} </dev/null 2>/dev/null | openssl x509 -noout -issuer"
        );
        let issuer = clients.world.run(&clients.session, &certificate).await;
        assert_eq!(issuer.contains("Upstream Test Authority"), theirs, "{host}: {issuer}");
    }
    // What no rule names, in the words that each gives.
    let (world, session) = (&clients.world, &clients.session);
    let refused = format!("https://other.test:{port}/");
    let shown = world.fails(session, &format!("{DIRECT} curl -sS {refused} 2>&1")).await;
    assert!(shown.contains("Could not resolve host: other.test"), "{shown}");
    let shown = world.fails(session, &format!("curl -sS -v {refused} 2>&1")).await;
    assert!(shown.contains("403"), "{shown}");
    world
        .recorded("the refusal", |record| {
            record["to"] == format!("other.test:{port}") && record["reason"] == "not_allowed"
        })
        .await;
    let shown = world.run(session, &format!("curl -sS http://read.test:{port}/ 2>&1")).await;
    assert!(shown.contains("tls_required"), "{shown}");
    let shown = world.fails(session, &format!("{DIRECT} curl -sS --max-time 20 https://127.0.0.2:{port}/ 2>&1; {DIRECT} curl -sS --max-time 20 https://192.0.2.1:{port}/ 2>&1")).await;
    world.recorded("the address", |record| record["reason"] == "direct_address").await;
    assert!(!shown.contains(PAGE), "{shown}");
    clients.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn python_urllib_and_requests() {
    if !has(&["nginx", "python3"]) {
        return;
    }
    let clients = Clients::begin(|world| world.seed(&prepared::requests())).await;
    clients
        .each("urllib", |url, _| {
            format!("python3 -c 'import sys, urllib.request as r; print(r.urlopen(sys.argv[1]).read().decode())' {url}")
        })
        .await;
    clients
        .each("requests", |url, _| {
            format!("PYTHONPATH=/workspace/python python3 -c 'import sys, requests; print(requests.get(sys.argv[1]).text)' {url}")
        })
        .await;
    clients.end().await;
}

const NODE: &str = r#"
const [http, https] = [require("node:http"), require("node:https")];
const url = new URL(process.argv[2]);
const proxy = process.env.HTTPS_PROXY && new URL(process.env.HTTPS_PROXY);
if (!proxy) {
  fetch(url).then((response) => response.text()).then(console.log, (why) => { console.error(why); process.exit(1); });
} else {
  const tunnel = http.request({ host: proxy.hostname, port: proxy.port, method: "CONNECT", path: url.host, headers: { host: url.host } });
  tunnel.on("connect", (answer, socket) => {
    if (answer.statusCode !== 200) throw new Error(`CONNECT: ${answer.statusCode}`);
    https.get(url, { socket, agent: false }, (response) => response.pipe(process.stdout));
  });
  tunnel.end();
}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn node_fetch_and_a_tunnel_of_its_own() {
    if !has(&["nginx", "node"]) {
        return;
    }
    let clients = Clients::begin(|_| {}).await;
    clients.world.run(&clients.session, &format!("cat > get.cjs <<'EOF'\n{NODE}\nEOF")).await;
    clients.each("node", |url, _| format!("node get.cjs {url}")).await;
    clients.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn go_http_client() {
    if !has(&["nginx", "go"]) {
        return;
    }
    let clients = Clients::begin(|world| world.seed(&prepared::go())).await;
    let shown = clients.each("go", |url, _| format!("./get {url}")).await;
    // It offers HTTP/2, and has it where the upstream does.
    assert!(shown.iter().all(|text| text.starts_with("HTTP/")), "{shown:?}");
    clients.end().await;
}

const JAVA: &str = r#"
import java.net.*;
import java.net.http.*;

public class Get {
    public static void main(String[] args) throws Exception {
        var client = HttpClient.newBuilder();
        if (System.getenv("HTTPS_PROXY") != null) {
            var proxy = URI.create(System.getenv("HTTPS_PROXY"));
            client.proxy(ProxySelector.of(new InetSocketAddress(proxy.getHost(), proxy.getPort())));
        }
        var request = HttpRequest.newBuilder(URI.create(args[0])).build();
        System.out.println(client.build().send(request, HttpResponse.BodyHandlers.ofString()).body());
    }
}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn java_http_client() {
    if !has(&["nginx", "java", "javac"]) {
        return;
    }
    let clients = Clients::begin(|_| {}).await;
    let compiled = format!("cat > Get.java <<'EOF'\n{JAVA}\nEOF\njavac -J-XX:TieredStopAtLevel=1 Get.java");
    clients.world.run(&clients.session, &compiled).await;
    clients.each("java", |url, _| format!("java -XX:TieredStopAtLevel=1 -cp . Get {url}")).await;
    clients.end().await;
}
