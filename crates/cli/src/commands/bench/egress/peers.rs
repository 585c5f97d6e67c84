//! What else carries requests, where it is installed and works.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::process::Command;

use super::outside::{Outside, Way};
use super::service::READ;
use super::throughput::{middle, rate};
use crate::commands::bench::Plan;
use crate::commands::bench::figure::Figure;
use crate::commands::bench::rig::Process;
use crate::output::note;

/// How long one may take to come up: an interpreter has much to read.
const UP: Duration = Duration::from_secs(15);

struct Peer {
    name: &'static str,
    way: Way,
    process: Process,
    rates: Vec<f64>,
    failed: bool,
}

/// All that are here.
pub(super) struct Peers(Vec<Peer>);

impl Peers {
    /// Starts each. One that does not work is left out, and a note says why.
    pub(super) async fn start(plan: &Plan, outside: &Outside, place: &Path) -> Peers {
        let mut peers = Peers(Vec::new());
        peers.add("mitmproxy", mitmproxy(&plan.mitmdump, outside, &place.join("mitmproxy")).await);
        peers.add("nginx", nginx(outside, &place.join("nginx")).await);
        peers
    }

    fn add(&mut self, name: &'static str, peer: Result<(Way, Process), String>) {
        match peer {
            Ok((way, process)) => self.0.push(Peer { name, way, process, rates: Vec::new(), failed: false }),
            Err(why) => note(format!("note: {name} is left out: {why}")),
        }
    }

    /// Everybody's turn.
    pub(super) async fn turn(&mut self, lasts: Duration) {
        for peer in self.0.iter_mut().filter(|peer| !peer.failed) {
            match rate(&peer.way, lasts).await {
                Ok(rate) => peer.rates.push(rate),
                Err(failure) => {
                    peer.failed = true;
                    note(format!("note: {} has failed after {} rounds:", peer.name, peer.rates.len()));
                    failure.report_as_warning();
                }
            }
        }
    }

    pub(super) fn beside(&self, figure: Figure) -> Figure {
        self.0.iter().fold(figure, |figure, peer| match middle(peer.rates.clone()) {
            Some(rate) => figure.beside(peer.name, rate),
            None => figure,
        })
    }

    /// Ends what was started.
    pub(super) async fn end(self) {
        for peer in self.0 {
            peer.process.end().await;
        }
    }
}

/// mitmdump as it comes, with a directory of its own, and checking the upstream as we do.
async fn mitmproxy(program: &Path, outside: &Outside, directory: &Path) -> Result<(Way, Process), String> {
    if !program.exists() {
        return Err(format!("{} is not there; --mitmdump names it", program.display()));
    }
    std::fs::create_dir(directory).map_err(|why| why.to_string())?;
    let root = write(directory, "root.pem", &outside.root_pem)?;
    let address = free()?;
    let mut command = Command::new(program);
    command.args(["--quiet", "--listen-host", "127.0.0.1", "--listen-port", &address.port().to_string()]);
    command.args(["--set", &format!("confdir={}", directory.display())]);
    command.args(["--set", &format!("ssl_verify_upstream_trusted_ca={root}")]);
    let process = up(command, address).await?;
    let trusted = async {
        let ca = std::fs::read_to_string(directory.join("mitmproxy-ca-cert.pem")).map_err(|why| why.to_string())?;
        // It is asked for an address, since it would ask the machine for names.
        let way = Way::new(address, READ, outside.address().port()).through(outside.address().to_string());
        way.trusting_pem(&ca).map_err(|_| "its certificate cannot be read".to_owned())
    };
    working(trusted.await, process).await
}

/// nginx as a reverse proxy that speaks TLS on both sides and keeps its connections.
async fn nginx(outside: &Outside, directory: &Path) -> Result<(Way, Process), String> {
    std::fs::create_dir(directory).map_err(|why| why.to_string())?;
    let (leaf, key, root) = (
        write(directory, "leaf.pem", &outside.leaf_pem)?,
        write(directory, "key.pem", &outside.key_pem)?,
        write(directory, "root.pem", &outside.root_pem)?,
    );
    let address = free()?;
    let (at, upstream) = (directory.display(), outside.address());
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("  {name}_temp_path {at}/{name};\n"))
        .collect();
    let configuration = format!(
        "daemon off;\n{user}\nworker_processes {cores};\npid {at}/pid;\nerror_log {at}/error.log;\n\
         events {{ worker_connections 1024; }}\n\
         http {{\n  access_log off;\n{temporary}  keepalive_requests 1000000000;\n\
         \x20 upstream outside {{ server {upstream}; keepalive 64; keepalive_requests 1000000000; }}\n\
         \x20 server {{\n    listen {address} ssl;\n    ssl_protocols TLSv1.2 TLSv1.3;\n    ssl_certificate {leaf};\n    \
         ssl_certificate_key {key};\n    location / {{\n      proxy_pass https://outside;\n      proxy_http_version 1.1;\n      \
         proxy_set_header Connection \"\";\n      proxy_set_header Host $http_host;\n      proxy_ssl_protocols TLSv1.2 TLSv1.3;\n      \
         proxy_ssl_server_name on;\n      proxy_ssl_name {READ};\n      proxy_ssl_verify on;\n      \
         proxy_ssl_trusted_certificate {root};\n    }}\n  }}\n}}\n"
    );
    let configuration = write(directory, "nginx.conf", &configuration)?;
    // Not in everybody's path.
    let sbin = Path::new("/usr/sbin/nginx");
    let mut command = Command::new(if sbin.exists() { sbin } else { Path::new("nginx") });
    command.args(["-p", &at.to_string(), "-e", &format!("{at}/error.log"), "-c", &configuration]);
    let process = up(command, address).await.map_err(|why| {
        let log = std::fs::read_to_string(directory.join("error.log")).unwrap_or_default();
        log.lines().next_back().map_or(why, str::to_owned)
    })?;
    let way = Way::new(address, READ, upstream.port()).trusting(outside.root().clone());
    working(way.map_err(|_| "its certificate cannot be read".to_owned()), process).await
}

/// A file of a peer's; its path, as configurations have it.
fn write(directory: &Path, name: &str, text: &str) -> Result<String, String> {
    let path = directory.join(name);
    std::fs::write(&path, text).map_err(|why| why.to_string())?;
    Ok(path.display().to_string())
}

/// An address that nothing listens at.
fn free() -> Result<SocketAddr, String> {
    let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    bound.map_err(|why| why.to_string())
}

/// Starts it, and waits until it listens.
async fn up(mut command: Command, address: SocketAddr) -> Result<Process, String> {
    command.stdout(Stdio::null());
    let mut process = match Process::spawn(command) {
        Ok((process, _)) => process,
        Err(_) => return Err("it is not installed, or may not be run".to_owned()),
    };
    let listens = async {
        while TcpStream::connect(address).await.is_err() {
            if process.has_ended() {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        true
    };
    match tokio::time::timeout(UP, listens).await {
        Ok(true) => Ok(process),
        Ok(false) => Err("it has ended at once".to_owned()),
        Err(_) => {
            process.end().await;
            Err(format!("it has not come up within {} s", UP.as_secs()))
        }
    }
}

/// It, if a request goes through; else it is ended.
async fn working(way: Result<Way, String>, process: Process) -> Result<(Way, Process), String> {
    let way = match way {
        Ok(way) => way,
        Err(why) => {
            process.end().await;
            return Err(why);
        }
    };
    let tried = async { way.open().await?.ask(&way.request("")).await };
    if let Err(failure) = tried.await {
        failure.report_as_warning();
        process.end().await;
        return Err("no request goes through it".to_owned());
    }
    Ok((way, process))
}
