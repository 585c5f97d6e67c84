//! The body of a push; its first byte says how it is cut. Asserts: no panic; the same in any pieces; what is refused is reported in
//! lines that git reads.
#![no_main]

use libfuzzer_sys::fuzz_target;
use palisade_egress::git::{Parser, Progress, PushRules, RefPattern, parse_push, refusal};

fuzz_target!(init: palisade_fuzz::plant(&seeds()), |data: &[u8]| {
    let Some((cut, body)) = data.split_first() else { return };
    let whole = parse_push(body);
    let mut parser = Parser::new();
    let mut last = Ok(Progress::More);
    for piece in body.chunks(usize::from(*cut).max(1)) {
        last = parser.push(piece);
        if !matches!(last, Ok(Progress::More)) {
            break;
        }
    }
    assert_eq!(last, whole);
    let Ok(Progress::Done(commands)) = whole else { return };
    assert!(commands.length <= body.len());
    // Read again alone, the list is the same.
    assert_eq!(parse_push(&body[..commands.length]), Ok(Progress::Done(commands.clone())));
    let refs = |list: &[&str]| -> Vec<RefPattern> { list.iter().filter_map(|text| text.parse().ok()).collect() };
    let rules = PushRules::new(refs(&["refs/heads/agent/*"]), refs(&["refs/heads/agent/main"]));
    match rules.check_push(&commands) {
        Ok(()) => assert!(commands.updates.iter().all(|update| update.name.starts_with("refs/heads/agent/") && !update.is_delete())),
        Err(refused) => {
            assert!(!refused.message.chars().any(char::is_control));
            lines(&refusal(&commands, &refused));
        }
    }
});

/// Walks the lines of a report, to its end.
fn lines(mut report: &[u8]) {
    while !report.is_empty() {
        let digits = std::str::from_utf8(&report[..4]).expect("a length is four digits");
        let length = usize::from_str_radix(digits, 16).expect("a length is four digits");
        assert!(length == 0 || (5..=65_520).contains(&length));
        report = &report[length.max(4)..];
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let (old, new, none) = ("1".repeat(40), "2".repeat(40), "0".repeat(40));
    let line = |text: String| format!("{:04x}{text}", text.len() + 4);
    let first = |name: &str, can: &str| line(format!("{old} {new} {name}\0 {can}"));
    [
        "0000".to_owned(),
        format!("{}0000PACK", first("refs/heads/agent/x", "report-status side-band-64k agent=git/2")),
        format!(
            "{}{}0000",
            first("refs/heads/main", "report-status-v2 push-options"),
            line(format!("{old} {none} refs/tags/v1"))
        ),
        format!("{}{}0000", line(format!("shallow {old}\n")), first("refs/heads/agent/main", "side-band atomic\n")),
        line("push-cert\0 atomic\n".to_owned()),
    ]
    .map(|body| [b"\x07", body.as_bytes()].concat())
    .to_vec()
}
