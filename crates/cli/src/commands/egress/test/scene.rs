//! One attempt: its session, its sandbox, and what became of it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use palisade_api::Secret;
use palisade_egress::broker::{Broker, Credential, Hosts, Places};
use palisade_egress::policy::Policy;
use palisade_egress::proxy::{Listeners, SessionSpec};
use palisade_egress::{Supply, SupplyError};
use palisade_sandbox::{Driver, ExecRequest, Given, Output, PROXY, Sandbox, Spec, Temporary};
use rustix::net::RecvFlags;

use super::attempt::{Attempt, Harm, Session, Shown, name};
use super::client::{FACTS, Heard, PROGRAM};
use super::echo;
use super::outside::{self, Outside};

/// The most time that an attempt may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long what has been sent may take to arrive, when it is to arrive.
const ARRIVAL: Duration = Duration::from_secs(5);

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// As it must: refused by what was named, or for a control, not refused.
    Held(String),
    /// It got through, with what.
    Through(String),
    /// Nothing can be told from its end.
    Unclear(String),
}

impl Verdict {
    pub(super) fn word(&self) -> &'static str {
        match self {
            Verdict::Held(_) => "held",
            Verdict::Through(_) => "through",
            Verdict::Unclear(_) => "unclear",
        }
    }

    pub(super) fn detail(&self) -> &str {
        let (Verdict::Held(text) | Verdict::Through(text) | Verdict::Unclear(text)) = self;
        text
    }
}

/// An attempt with its end.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) attempt: &'static Attempt,
    pub(super) verdict: Verdict,
    /// What the trail has of its session: what was asked for and why it was refused.
    pub(super) kept: Vec<String>,
    pub(super) took: Duration,
}

/// A value, until it is revoked.
#[derive(Debug)]
struct Value(Option<Arc<Secret>>);

#[async_trait]
impl Supply for Value {
    async fn value(&self) -> Result<Arc<Secret>, SupplyError> {
        self.0.clone().ok_or(SupplyError::Revoked)
    }
}

/// What an attempt is told apart by. Also what it must not send or see.
struct Marks {
    session: String,
    /// In what must not leave.
    token: String,
    /// The real value of the credentials. Long enough, and with characters that are written in several ways.
    value: String,
}

impl Marks {
    fn new(attempt: &Attempt) -> std::io::Result<Marks> {
        let mut bytes = [0; 20];
        let mut filled = 0;
        while filled < bytes.len() {
            filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
        }
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Marks {
            session: format!("sesn_{}_{}", attempt.name, &hex[..6]),
            token: format!("tkn{}", &hex[..14]),
            value: format!("cnry+{}/{}", &hex[14..26], &hex[26..]),
        })
    }
}

/// The credentials of a session: one for headers alone, one for everywhere, one that may go without TLS as far as it is asked.
fn credentials(value: Option<&str>) -> Result<Vec<Credential>, String> {
    let supply = || Arc::new(Value(value.map(|value| Arc::new(Secret::new(value)))));
    let hosts = |list: &[&str]| Hosts::limited(list).map_err(|why| why.to_string());
    let header = Credential::new("cred_header", "HEADER_TOKEN", hosts(&["allowed.test", "plain.test"])?, supply());
    let mut anywhere = Credential::new("cred_anywhere", "ANYWHERE_TOKEN", hosts(&["allowed.test"])?, supply());
    anywhere.places = Places { header: true, query: true, path: true, body: true };
    Ok(vec![header, anywhere])
}

/// What patterns may say of a session.
fn facts(outside: &Outside, marks: &Marks, broker: &Broker, foreign: &Broker) -> BTreeMap<String, String> {
    let mut facts = outside.facts.clone();
    let mut add = |name: &str, text: String| facts.insert(name.to_owned(), text);
    let get = |broker: &Broker, variable: &str| {
        let found = broker.environment().into_iter().find(|(name, _)| name == variable);
        found.map(|(_, value)| value).unwrap_or_default()
    };
    let placeholder = get(broker, "HEADER_TOKEN");
    let (first, second) = placeholder.split_at(placeholder.len() / 2);
    add("first-half", first.to_owned());
    add("second-half", second.to_owned());
    add("half", format!("{:x}", first.len()));
    add("other-half", format!("{:x}", second.len()));
    add("basic", STANDARD.encode(format!("user:{placeholder}")));
    add("base64", STANDARD.encode(&placeholder));
    add("base64-shifted", STANDARD.encode(format!("xy{placeholder}")));
    add("base64-url", URL_SAFE.encode(&placeholder));
    add("hex", placeholder.bytes().map(|byte| format!("{byte:02x}")).collect());
    add("percent", placeholder.bytes().map(|byte| format!("%{byte:02X}")).collect());
    add("json", placeholder.chars().map(|c| format!("\\u{:04x}", u32::from(c))).collect());
    add("placeholder", placeholder);
    add("anywhere", get(broker, "ANYWHERE_TOKEN"));
    add("foreign", get(foreign, "HEADER_TOKEN"));
    add("token", marks.token.clone());
    // Of the session, as the token must not come to a name server.
    add("fresh", marks.session.rsplit('_').next().unwrap_or_default().to_owned());
    facts
}

/// Facts that are too long for a variable, and are made inside.
pub(super) fn long() -> [(String, String); 3] {
    let longs =
        [("long", "x".repeat(100_000)), ("many", "X-Flood: y\r\n".repeat(500)), ("kilobytes", "x".repeat(4000))];
    longs.map(|(name, text)| (name.to_owned(), text))
}

/// Makes an attempt.
pub(super) async fn make(attempt: &'static Attempt, outside: &Outside, driver: &dyn Driver, program: &Path) -> Made {
    /// How often one is made whose end tells nothing: the machine may have stood still.
    const TRIES: usize = 3;
    let began = Instant::now();
    let mut tries = Vec::new();
    loop {
        let mut kept = Vec::new();
        let marks = match Marks::new(attempt) {
            Ok(marks) => marks,
            Err(why) => {
                let verdict = Verdict::Unclear(format!("there is no randomness: {why}"));
                return Made { attempt, verdict, kept, took: began.elapsed() };
            }
        };
        let made = Box::pin(one(attempt, outside, (driver, program), &marks, &mut kept));
        let mut verdict = match tokio::time::timeout(PATIENCE, made).await {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(why)) => Verdict::Unclear(why),
            Err(_) => Verdict::Unclear(format!("it has not ended within {} s", PATIENCE.as_secs())),
        };
        // What any try has done counts, however it ended.
        tries.push(marks);
        if let Some(harm) = tries.iter().find_map(|marks| harm(attempt, outside, marks)) {
            verdict = Verdict::Through(harm);
        }
        if tries.len() == TRIES || !matches!(verdict, Verdict::Unclear(_)) {
            return Made { attempt, verdict, kept, took: began.elapsed() };
        }
    }
}

/// What the kernel told of refused packets, and what the program heard.
struct Seen {
    heard: Vec<Heard>,
    errors: String,
    told: bool,
}

async fn one(
    attempt: &'static Attempt,
    outside: &Outside,
    (driver, program): (&dyn Driver, &Path),
    marks: &Marks,
    kept: &mut Vec<String>,
) -> Result<Verdict, String> {
    let value = (attempt.session != Session::Revoked).then_some(marks.value.as_str());
    let broker = |session: &str| {
        let broker = credentials(value).map(|all| Broker::new(&outside.mint, session, all));
        broker.and_then(|broker| broker.map_err(|why| why.to_string()))
    };
    let (own, foreign) = (Arc::new(broker(&marks.session)?), broker("sesn_other")?);
    let policy = Policy::parse(&outside.policy).map_err(|why| why.to_string())?;
    if attempt.session == Session::Untraced {
        outside.trail.break_for(&marks.session);
    }
    let prepared = outside.service.prepare(SessionSpec {
        session: marks.session.clone(),
        policy: Arc::new(policy),
        broker: own.clone(),
        ssh_keys: Vec::new(),
        now: outside::now(),
    });
    let prepared = prepared.map_err(|why| why.to_string())?;
    let home = Temporary::new("palisade-scene-", None);
    let home = home.map_err(|why| format!("there is no directory for it: {why}"))?;
    let sandbox = sandbox(home.path(), prepared.ca_pem(), &own, driver, program).await?;
    let network = sandbox.network().ok_or("the sandbox's network leads nowhere")?;
    let listeners = Listeners {
        proxy: TcpListener::from(network.proxy),
        transparent: TcpListener::from(network.caught),
        dns_tcp: TcpListener::from(network.resolver_tcp),
        dns_udp: UdpSocket::from(network.resolver_udp),
        ssh_agent: None,
    };
    let session = prepared.serve(listeners).map_err(|why| format!("its sockets cannot be served: {why}"))?;
    let mut session = Some(session);
    if attempt.session == Session::Ended
        && let Some(session) = session.take()
    {
        session.close().await;
    }
    let facts = facts(outside, marks, &own, &foreign);
    let (heard, ended) = run(attempt, &facts, &sandbox).await;
    let errors = match ended {
        Ok(errors) => errors,
        Err(why) => return Ok(value_in(&everything(&heard), marks).unwrap_or(Verdict::Unclear(why))),
    };
    // Outcomes are with the trail then.
    if let Some(session) = session {
        session.close().await;
    }
    let mut message = [0; 16384];
    let told = rustix::net::recv(&network.refused, &mut message[..], RecvFlags::DONTWAIT).is_ok();
    let seen = Seen { heard, errors, told };
    let verdict = judge(attempt, outside, marks, &facts, &seen).await;
    for (entry, outcome) in outside.trail.of(&marks.session) {
        let word = entry.reason.or(outcome.and_then(|outcome| outcome.error)).unwrap_or("allowed");
        let method = entry.method.map(|method| format!("{method} ")).unwrap_or_default();
        kept.push(format!("{} {method}{}: {word}", entry.kind, entry.to));
    }
    match sandbox.destroy().await {
        Err(why) if !matches!(verdict, Verdict::Through(_)) => Err(format!("its sandbox cannot be ended: {why}")),
        _ => Ok(verdict),
    }
}

async fn sandbox(
    home: &Path,
    ca: &str,
    broker: &Broker,
    driver: &dyn Driver,
    program: &Path,
) -> Result<Sandbox, String> {
    let failed = |why: std::io::Error| format!("its directories cannot be made: {why}");
    for name in ["workspace", "outputs", "trust"] {
        fs::create_dir(home.join(name)).map_err(failed)?;
    }
    fs::write(home.join("trust/ca.pem"), ca).map_err(failed)?;
    let mut spec = Spec::new(home.join("workspace"), home.join("outputs"));
    spec.egress = true;
    spec.given = vec![
        Given { host: program.to_owned(), target: PROGRAM.to_owned(), over: false },
        Given { host: home.join("trust"), target: "/run/palisade/trust".to_owned(), over: false },
    ];
    spec.env = broker.environment();
    spec.env.extend(["HTTP_PROXY", "HTTPS_PROXY"].map(|name| (name.to_owned(), format!("http://{PROXY}"))));
    driver.create(spec).await.map_err(|why| format!("there is no sandbox for it: {why}"))
}

/// Runs the program. What it heard, as far as that is known; and what it complained of, or why nothing can be told of it.
async fn run(
    attempt: &Attempt,
    facts: &BTreeMap<String, String>,
    sandbox: &Sandbox,
) -> (Vec<Heard>, Result<String, String>) {
    let mut said = Vec::new();
    let ended = follow(attempt, facts, sandbox, &mut said).await;
    let mut heard: Vec<Heard> = Vec::new();
    let mut unread = None;
    for line in said.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        match serde_json::from_slice(line) {
            Ok(one) => heard.push(one),
            Err(why) => unread = Some(why),
        }
    }
    let ended = ended.and_then(|errors| match unread {
        Some(why) => Err(format!("what it said cannot be read: {why}; {errors}")),
        None if heard.len() != attempt.acts.len() => {
            Err(format!("it made {} of {} acts: {errors}", heard.len(), attempt.acts.len()))
        }
        None => Ok(errors),
    });
    (heard, ended)
}

async fn follow(
    attempt: &Attempt,
    facts: &BTreeMap<String, String>,
    sandbox: &Sandbox,
    said: &mut Vec<u8>,
) -> Result<String, String> {
    let told = serde_json::to_string(facts).map_err(|why| why.to_string())?;
    let request = ExecRequest {
        argv: [PROGRAM, "egress", "attempt", &attempt.name].map(str::to_owned).into(),
        env: vec![(FACTS.to_owned(), told)],
        timeout: Some(PATIENCE),
        ..ExecRequest::default()
    };
    let mut exec = sandbox.exec(request).await.map_err(|why| format!("it cannot be started: {why}"))?;
    let mut errors = Vec::new();
    while let Some(output) = exec.next().await.map_err(|why| format!("it cannot be followed: {why}"))? {
        match output {
            Output::Stdout(bytes) => said.extend_from_slice(&bytes),
            Output::Stderr(bytes) => errors.extend_from_slice(&bytes),
            Output::Lost(bytes) => return Err(format!("{bytes} bytes of what it said are lost")),
        }
    }
    Ok(String::from_utf8_lossy(&errors).trim().to_owned())
}

/// The body of an answer as it would be read: without chunks, unpacked.
fn unpacked(answer: &[u8]) -> Vec<u8> {
    let Some(end) = memchr::memmem::find(answer, b"\r\n\r\n") else { return Vec::new() };
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let mut rest = &answer[end + 4..];
    let mut body = Vec::new();
    if head.contains("transfer-encoding: chunked") {
        while let Some(line) = memchr::memmem::find(rest, b"\r\n") {
            let size =
                std::str::from_utf8(&rest[..line]).ok().and_then(|size| usize::from_str_radix(size.trim(), 16).ok());
            let Some(chunk) = size.filter(|size| *size > 0).and_then(|size| rest.get(line + 2..line + 2 + size)) else {
                break;
            };
            body.extend_from_slice(chunk);
            rest = rest.get(line + 4 + chunk.len()..).unwrap_or_default();
        }
    } else {
        body.extend_from_slice(rest);
    }
    let mut out = Vec::new();
    // What does not unpack is not read by anybody; as far as it does, it counts.
    const MOST: u64 = 128 << 20;
    let _ = if head.contains("content-encoding: gzip") {
        flate2::read::MultiGzDecoder::new(&body[..]).take(MOST).read_to_end(&mut out)
    } else if head.contains("content-encoding: deflate") {
        let zlib = body.first().is_some_and(|first| first & 15 == 8);
        if zlib {
            flate2::read::ZlibDecoder::new(&body[..]).take(MOST).read_to_end(&mut out)
        } else {
            flate2::read::DeflateDecoder::new(&body[..]).take(MOST).read_to_end(&mut out)
        }
    } else {
        out = body;
        Ok(0)
    };
    out
}

/// A way in which the real value can be read in this, if there is one.
fn readable(bytes: &[u8], value: &str) -> Option<&'static str> {
    echo::WAYS.iter().copied().find(|way| {
        let Some(text) = echo::written(way, value) else { return false };
        // In base64 the first and last characters depend on what stands around.
        let text = if way.starts_with("base64") || *way == "basic" { &text[4..text.len() - 5] } else { &text[..] };
        memchr::memmem::find(bytes, text.as_bytes()).is_some()
    })
}

/// All that was heard, as it came and as it would be read.
fn everything(heard: &[Heard]) -> Vec<u8> {
    let mut all = Vec::new();
    for heard in heard {
        let bytes = heard.bytes();
        all.extend(unpacked(&bytes));
        all.push(b'\n');
        all.extend(bytes);
        all.push(b'\n');
    }
    all
}

/// The verdict on what was heard, if the real value is in it.
fn value_in(all: &[u8], marks: &Marks) -> Option<Verdict> {
    let way = readable(all, &marks.value)?;
    Some(Verdict::Through(format!("the real value of the credential was seen inside ({way})")))
}

/// Where the real value came to.
fn value_at(outside: &Outside, marks: &Marks, which: impl Fn(&str) -> bool) -> Option<&'static str> {
    let mut needles = echo::WAYS.iter().filter_map(|way| echo::written(way, &marks.value));
    needles.find_map(|needle| outside.records.find(&needle, |record| which(record.at)))
}

/// What has come to somebody that must not.
fn harm(attempt: &Attempt, outside: &Outside, marks: &Marks) -> Option<String> {
    if let Some(at) = value_at(outside, marks, |at| at != "https" || attempt.harm == Harm::Value) {
        return Some(format!("the real value of the credential came to {at}"));
    }
    let arrived = match (attempt.shown.is_control(), attempt.harm) {
        (false, Harm::Token) => outside.records.find(&marks.token, |_| true),
        (false, Harm::Head) => outside.records.find(&marks.token, |record| record.head),
        _ => None,
    };
    arrived.map(|at| format!("it arrived: {at} has it"))
}

async fn judge(
    attempt: &Attempt,
    outside: &Outside,
    marks: &Marks,
    facts: &BTreeMap<String, String>,
    seen: &Seen,
) -> Verdict {
    let all = everything(&seen.heard);
    // First what has happened, whatever anybody says.
    if let Some(seen) = value_in(&all, marks) {
        return seen;
    }
    if let Some(harm) = harm(attempt, outside, marks) {
        return Verdict::Through(harm);
    }
    // Then whether it is known why not.
    let entries = outside.trail.of(&marks.session);
    let errors: Vec<String> = seen.heard.iter().filter_map(|heard| heard.error.clone()).collect();
    let first: String = String::from_utf8_lossy(&all).chars().filter(|c| !c.is_control()).take(160).collect();
    let otherwise = |wanted: &str| {
        let reasons: Vec<&str> = entries
            .iter()
            .map(|(entry, outcome)| entry.reason.or(outcome.as_ref().and_then(|it| it.error)).unwrap_or("allowed"))
            .collect();
        let (reasons, errors) = (reasons.join(", "), errors.join("; "));
        Verdict::Unclear(format!(
            "{wanted}; the trail has [{reasons}], the program met [{errors}] and heard {first:?} {}",
            seen.errors
        ))
    };
    let numbers: Vec<i32> = seen.heard.iter().filter_map(|heard| heard.errno).collect();
    let refused =
        |list: &[rustix::io::Errno]| list.iter().find(|errno| numbers.contains(&errno.raw_os_error())).copied();
    let says = |text: &str| memchr::memmem::find(&all, text.as_bytes()).is_some();
    match &attempt.shown {
        Shown::Reason(codes) => {
            let found = entries.iter().find_map(|(entry, outcome)| {
                let refused = entry.reason.filter(|_| !entry.allowed);
                let code = refused.or(outcome.as_ref().and_then(|outcome| outcome.error))?;
                codes.contains(&code).then(|| (code, entry.rule.clone()))
            });
            match found {
                Some((code, None)) => Verdict::Held(code.to_owned()),
                Some((code, Some(rule))) => Verdict::Held(format!("{code}, rule {rule}")),
                None => otherwise(&format!("no reason {}", codes.join(" or "))),
            }
        }
        Shown::Errno(list) => match refused(list) {
            Some(errno) => Verdict::Held(name(errno).to_owned()),
            None => otherwise(&format!("no error {}", attempt.shown.evidence())),
        },
        Shown::Told(list) => match refused(list) {
            Some(errno) if seen.told => Verdict::Held(format!("{}, told", name(errno))),
            Some(errno) => otherwise(&format!("{}, but the kernel told nobody", name(errno))),
            None => otherwise(&format!("no error {}", attempt.shown.evidence())),
        },
        Shown::Silence => {
            let reset = Some(rustix::io::Errno::CONNRESET.raw_os_error());
            let ended = |heard: &Heard| heard.error.is_none() || heard.errno == reset || heard.is_end();
            let silent = seen.heard.iter().all(|heard| heard.said.is_empty() && ended(heard));
            if silent {
                Verdict::Held(attempt.shown.evidence())
            } else {
                otherwise("something was answered, or it hangs")
            }
        }
        Shown::Said(text) | Shown::Heard(text) => {
            if says(text) {
                Verdict::Held((*text).to_owned())
            } else {
                otherwise(&format!("it did not hear {text:?}"))
            }
        }
        Shown::Redacted => {
            let count: u64 = entries.iter().filter_map(|(_, outcome)| outcome.as_ref()).map(|it| it.redacted).sum();
            if count > 0 { Verdict::Held(format!("{count} redacted")) } else { otherwise("nothing was redacted") }
        }
        Shown::Arrived(upstream) => {
            match arrives(|| outside.records.find(&marks.token, |record| record.at == *upstream)).await {
                Some(at) => Verdict::Held(format!("it arrived at {at}")),
                None => otherwise("it did not arrive"),
            }
        }
        Shown::Injected => match arrives(|| value_at(outside, marks, |at| at == "https")).await {
            Some(_) if outside.records.find(facts.get("placeholder").map_or("", |it| it), |_| true).is_none() => {
                Verdict::Held("the real value arrived at its host".to_owned())
            }
            Some(_) => otherwise("the placeholder arrived, too"),
            None => otherwise("the real value did not arrive"),
        },
    }
}

/// Waits for something to arrive.
async fn arrives(find: impl Fn() -> Option<&'static str>) -> Option<&'static str> {
    let waiting = async {
        loop {
            if let Some(found) = find() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(ARRIVAL, waiting).await.ok()
}
