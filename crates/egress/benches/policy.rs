//! How long a decision takes with 200 rules: `cargo bench -p palisade-egress --bench policy`.

use std::time::Instant;

use divan::{Bencher, black_box};
use palisade_egress::policy::{Budgets, Policies, Policy, Protocol, Request, RuleName, Scheme, Subject};
use palisade_egress::{Authority, Host};

fn main() {
    divan::main();
}

/// 200 rules: exact hosts, suffixes, methods, paths.
fn rules() -> String {
    (0..100)
        .map(|n| {
            format!(
                "  - {{name: exact-{n}, host: host-{n}.example, methods: [GET, POST], paths: [/v1/, \"/repos/*/**/x\"]}}\n  \
                 - {{name: below-{n}, host: \"*.zone-{n}.example\", requests_per_minute: 1000000000, max_session_bytes: 1 TiB}}\n"
            )
        })
        .collect()
}

fn policy() -> Policy {
    Policy::parse(&format!("rules:\n{}", rules())).expect("the rules are right")
}

fn authority(text: &str) -> Authority {
    Authority::parse(text, Some(443)).expect("it is a host")
}

const HOSTS: &[&str] = &["host-57.example", "a.b.zone-57.example", "evil.example"];

#[divan::bench(args = HOSTS)]
fn connection(bencher: Bencher<'_, '_>, host: &str) {
    let (policy, authority) = (policy(), authority(host));
    bencher.bench_local(|| policy.connection(black_box(&authority), Protocol::Tls));
}

#[divan::bench(args = HOSTS)]
fn request(bencher: Bencher<'_, '_>, host: &str) {
    let (policy, authority) = (policy(), authority(host));
    let path = "/v1/messages?beta=true";
    bencher.bench_local(|| {
        let request = Request {
            scheme: Scheme::Https,
            authority: &authority,
            method: "POST",
            path,
            upgrade: None,
            body_bytes: Some(9),
        };
        policy.request(black_box(&request))
    });
}

#[divan::bench]
fn request_of_two_sections(bencher: Bencher<'_, '_>) {
    let indented = rules().replace("  - ", "      - ");
    let yaml = format!("environments:\n  e:\n    rules:\n{indented}agents:\n  a:\n    rules:\n{indented}");
    let policies = Policies::parse(&yaml).expect("the rules are right");
    let policy = policies.for_session(&Subject { environment: "e", agent: Some("a"), agent_name: None });
    let authority = authority("host-57.example");
    bencher.bench_local(|| {
        let request = Request {
            scheme: Scheme::Https,
            authority: &authority,
            method: "GET",
            path: "/repos/a/b/c/x",
            upgrade: None,
            body_bytes: None,
        };
        policy.request(black_box(&request))
    });
}

#[divan::bench]
fn address(bencher: Bencher<'_, '_>) {
    let (policy, rule) = (policy(), RuleName::new("exact-57"));
    bencher.bench_local(|| policy.address(black_box(&rule), [1, 1, 1, 1].into()));
}

#[divan::bench]
fn budget(bencher: Bencher<'_, '_>) {
    let start = Instant::now();
    let (budgets, rule) = (Budgets::new(&policy(), start), RuleName::new("below-57"));
    let meter = budgets.meter(&rule);
    bencher.bench_local(|| (budgets.request(black_box(&rule), start).is_ok(), meter.bytes(black_box(1)).is_ok()));
}

#[divan::bench(args = ["api.host-57.example:443", "BÜCHER.example:443", "[2001:db8::1]:443"])]
fn name(text: &str) -> Option<Host> {
    Authority::parse(black_box(text), None).ok().map(|authority| authority.host)
}
