//! A worker with an egress service, upstreams that only it reaches, and the credentials that only it knows.

use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use axum::Router;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use palisade_audit::Filter;
use palisade_egress::policy::Policies;
use palisade_egress::proxy::Resolver;
use palisade_sandbox::Driver;
use palisade_testkit::control_plane::{FakeSession, text};
use palisade_vault::{Surroundings, SystemClock};
use palisade_worker::{Credentials, Egress, EgressOptions, Options};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::rig::{Rig, Working};

/// Runs a program as one that knows of no proxy.
pub(super) const DIRECT: &str = "env -u HTTP_PROXY -u HTTPS_PROXY -u http_proxy -u https_proxy";
/// A call in a sandbox of a busy machine, with a compiler or an agent in it.
const PATIENCE: Duration = Duration::from_secs(100);
/// In each secret, so that one search finds them all.
pub(super) const CANARY: &str = "CANARY7Q";

/// Whether these programs are here; says so when one is not, which is a failure where everything should be installed.
#[expect(clippy::print_stdout, reason = "a test that is not run says why")]
pub(super) fn has(programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let known: Vec<PathBuf> = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/bin".into()]).collect();
    for program in programs {
        if !known.iter().any(|directory| directory.join(program).is_file()) {
            println!("not run: {program} is not installed");
            assert!(std::env::var_os("CI").is_none(), "not run: {program} is not installed");
            return false;
        }
    }
    true
}

/// The authority of the upstreams' certificates, which the worker trusts by its file and nobody else does.
pub(super) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub(super) pem: String,
}

/// A certificate and its key.
struct Leaf {
    der: CertificateDer<'static>,
    key: KeyPair,
}

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

impl Ca {
    fn new() -> Ca {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "Upstream Test Authority");
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let pem = pem("CERTIFICATE", params.self_signed(&key).unwrap().der());
        Ca { issuer: Issuer::new(params, key), pem }
    }

    fn leaf(&self, names: &[&str]) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &self.issuer).unwrap();
        Leaf { der: certificate.der().clone(), key }
    }
}

/// Each name below `test` is this machine.
#[derive(Debug)]
struct Loopback;

#[async_trait]
impl Resolver for Loopback {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        if !name.ends_with(".test") {
            return Err(io::Error::new(io::ErrorKind::NotFound, "no such name"));
        }
        Ok(vec![IpAddr::V4(Ipv4Addr::LOCALHOST)])
    }
}

/// A server with TLS, HTTP/1.1 and HTTP/2.
pub(super) struct Upstream {
    pub(super) port: u16,
    task: JoinHandle<()>,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// nginx, with TLS, HTTP/1.1 and HTTP/2: gives the same file for every path, and says what it was told at `/told`.
pub(super) struct Nginx {
    pub(super) port: u16,
    folder: tempfile::TempDir,
    child: Child,
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Asked rather than killed, as it has a process that works for it.
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

impl Nginx {
    /// Lines of `METHOD PATH PROTOCOL` that it has served.
    pub(super) fn served(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.folder.path().join("access.log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }
}

/// Makes rules of a policy for one port of this machine.
pub(super) fn rule(name: &str, host: &str, port: u16, more: &str) -> String {
    format!("      - {{name: {name}, host: {host}, address: 127.0.0.0/8, ports: {port}{more}}}\n")
}

/// The policy of the sessions' environment.
pub(super) fn policy(rules: &[String]) -> String {
    format!("environments:\n  {}:\n    rules:\n{}", palisade_testkit::control_plane::ENVIRONMENT, rules.concat())
}

/// A credential whose value is in a file of the `keys` source.
pub(super) fn credential(variable: &str, from: &str, host: &str) -> String {
    format!(
        "  - auth: {{type: environment_variable, secret_name: {variable}, secret_value: {{from: '{from}'}}, \
         networking: {{type: limited, allowed_hosts: [{host}]}}}}\n"
    )
}

pub(super) struct World {
    pub(super) rig: Rig,
    pub(super) ca: Ca,
    /// Where secrets are, and what the worker is started with: nothing that a sandbox or the worker's state has.
    pub(super) own: tempfile::TempDir,
    variables: Vec<(String, String)>,
    sources: String,
    seed: Option<PathBuf>,
    trail: Option<PathBuf>,
    driver: Option<Arc<dyn Driver>>,
}

impl World {
    pub(super) async fn new() -> World {
        let own = tempfile::tempdir().unwrap();
        let keys = own.path().join("keys");
        std::fs::create_dir(&keys).unwrap();
        let ca = Ca::new();
        std::fs::write(own.path().join("upstream.pem"), &ca.pem).unwrap();
        let sources = format!("  file: {{keys: {{directory: {}}}}}\n", keys.display());
        World { rig: Rig::new().await, ca, own, variables: Vec::new(), sources, seed: None, trail: None, driver: None }
    }

    /// Puts a secret into the `keys` source.
    pub(super) fn secret(&self, name: &str, value: &str) {
        let path = self.own.path().join("keys").join(name);
        std::fs::write(&path, value).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Adds a source.
    pub(super) fn source(&mut self, yaml: &str) {
        let _ = writeln!(self.sources, "  {yaml}");
    }

    /// A variable that the vault sees as one of the worker's.
    pub(super) fn variable(&mut self, name: &str, value: &str) {
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    /// What each workspace begins with.
    pub(super) fn seed(&mut self, seed: &Path) {
        self.seed = Some(seed.to_owned());
    }

    /// Another place for the trail than the worker's state.
    pub(super) fn keep_trail_at(&mut self, path: &Path) {
        self.trail = Some(path.to_owned());
    }

    /// Another driver than `native`.
    pub(super) fn driver(&mut self, driver: Arc<dyn Driver>) {
        self.driver = Some(driver);
    }

    pub(super) fn trail(&self) -> PathBuf {
        self.trail.clone().unwrap_or_else(|| self.rig.dir.path().join("state/audit"))
    }

    /// Serves an application by TLS.
    pub(super) async fn upstream(&self, names: &[&str], app: Router) -> Upstream {
        let leaf = self.ca.leaf(names);
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(leaf.key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = config.with_no_client_auth().with_single_cert(vec![leaf.der], key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, app) = (acceptor.clone(), app.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let server = auto::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app)).await;
                });
            }
        });
        Upstream { port, task }
    }

    /// Starts nginx with a certificate for these names.
    pub(super) fn nginx(&self, names: &[&str]) -> Nginx {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let leaf = self.ca.leaf(names);
        std::fs::write(folder.path().join("cert.pem"), pem("CERTIFICATE", &leaf.der)).unwrap();
        std::fs::write(folder.path().join("key.pem"), pem("PRIVATE KEY", &leaf.key.serialize_der())).unwrap();
        std::fs::write(folder.path().join("page"), "a page of nginx\n").unwrap();
        // nginx takes over a socket that listens, as it does when it replaces itself: the port is the system's choice.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty()).unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&listener);
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|what| format!("  {what}_temp_path {at}/{what};\n"))
            .collect();
        let user = if geteuid().is_root() { "user root;\n" } else { "" };
        let config = format!(
            "daemon off;\n{user}worker_processes 1;\npid {at}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{\n{temporary}  \
             log_format seen '$request_method $request_uri $server_protocol';\n  access_log {at}/access.log seen;\n  \
             default_type text/plain;\n  server {{\n    listen 127.0.0.1:{port} ssl http2;\n    ssl_certificate \
             {at}/cert.pem;\n    ssl_certificate_key {at}/key.pem;\n    root {at};\n    location / {{ try_files /page \
             =404; }}\n    location /told {{ return 200 \"$http_authorization\\n\"; }}\n  }}\n}}\n"
        );
        std::fs::write(folder.path().join("nginx.conf"), config).unwrap();
        let mut command = Command::new("nginx");
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin:/sbin")).env("NGINX", format!("{number};"));
        command.arg("-p").arg(folder.path()).arg("-c").arg(folder.path().join("nginx.conf")).stdin(Stdio::null());
        let log = std::fs::File::create(folder.path().join("error.log")).unwrap();
        command.stdout(Stdio::null()).stderr(log);
        let child = command.spawn().expect("nginx is installed (Debian and Ubuntu: apt-get install nginx-light)");
        Nginx { port, folder, child }
    }

    /// The worker's options with this policy and these credentials.
    pub(super) fn options(&self, policy: &str, credentials: &str) -> Options {
        let variables = self.variables.clone();
        let surroundings = Surroundings::new(move |name| {
            variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.into())
        });
        let list = if credentials.is_empty() { "  []\n" } else { credentials };
        let file = format!("sources:\n{}credentials:\n{list}", self.sources);
        #[expect(clippy::disallowed_methods, reason = "certificates of real programs are valid now")]
        let now = SystemTime::now;
        let egress = Egress::open(EgressOptions {
            policies: Policies::parse(policy).unwrap(),
            credentials: Credentials::parse(&file, &surroundings, Arc::new(SystemClock::new())).unwrap(),
            identity: None,
            upstream_ca: Some(self.own.path().join("upstream.pem")),
            resolver: Some(Arc::new(Loopback)),
            state: self.own.path().to_owned(),
            trail: self.trail(),
            now,
        });
        let own = self.rig.options();
        let driver = self.driver.clone().unwrap_or_else(|| own.driver.clone());
        Options { egress: Some(egress.unwrap()), seed: self.seed.clone(), driver, ..own }
    }

    /// Starts a worker, and a session on it.
    pub(super) fn begin(&self, policy: &str, credentials: &str) -> (Working, FakeSession) {
        let working = self.rig.start_with(self.options(policy, credentials));
        (working, self.session())
    }

    pub(super) fn session(&self) -> FakeSession {
        let session = self.rig.fake.session();
        session.queue();
        session
    }

    /// What a command prints, and whether it failed.
    pub(super) async fn outcome(&self, session: &FakeSession, command: &str) -> (String, bool) {
        let call = session.bash(command);
        let waiting = async {
            loop {
                if let Some(result) = session.result_of(&call) {
                    return result;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let result = tokio::time::timeout(PATIENCE, waiting).await;
        let result = result.unwrap_or_else(|_| panic!("it takes too long: {command}"));
        (text(&result).to_owned(), result["is_error"] == true)
    }

    /// What a command prints that must not fail.
    pub(super) async fn run(&self, session: &FakeSession, command: &str) -> String {
        let (shown, failed) = self.outcome(session, command).await;
        assert!(!failed, "{command}\n{shown}\n{}", self.shown());
        shown
    }

    /// What a command prints that must fail.
    pub(super) async fn fails(&self, session: &FakeSession, command: &str) -> String {
        let (shown, failed) = self.outcome(session, command).await;
        assert!(failed, "{command}\n{shown}\n{}", self.shown());
        shown
    }

    /// What the trail has.
    pub(super) fn records(&self) -> Vec<Value> {
        let Ok(records) = palisade_audit::read(&self.trail(), Filter::default()) else { return Vec::new() };
        let body = |record: palisade_audit::Record| serde_json::from_str::<Value>(record.body.get()).unwrap();
        records.map(|record| body(record.unwrap())).collect()
    }

    /// The same to read, for a test that failed.
    fn shown(&self) -> String {
        self.records().iter().map(|record| format!("{record}\n")).collect()
    }

    /// Waits until the trail has a record like this.
    pub(super) async fn recorded(&self, what: &str, like: impl Fn(&Value) -> bool) -> Value {
        self.rig.fake.wait(what, |_| self.records().into_iter().find(&like)).await
    }
}
