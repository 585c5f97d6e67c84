//! Pushes are read before they go out, and refused as a whole.

use palisade_egress::git::{
    Commands, GitError, Parser, Progress, PushRules, RefUpdate, Service, parse_push, refusal, service,
};
use proptest::prelude::*;

const OLD: &str = "1111111111111111111111111111111111111111";
const NEW: &str = "2222222222222222222222222222222222222222";
const NONE: &str = "0000000000000000000000000000000000000000";
const CAPABILITIES: &str = " report-status-v2 side-band-64k object-format=sha1 agent=git/2.47.3";

fn line(text: &str) -> String {
    format!("{:04x}{text}", text.len() + 4)
}

fn push(commands: &[(&str, &str, &str)]) -> Vec<u8> {
    let mut body = String::new();
    for (number, (old, new, name)) in commands.iter().enumerate() {
        let capabilities = if number == 0 { format!("\0{CAPABILITIES}") } else { String::new() };
        body.push_str(&line(&format!("{old} {new} {name}{capabilities}")));
    }
    body.push_str("0000PACK\0\0\0\x02");
    body.into_bytes()
}

fn commands(body: &[u8]) -> Commands {
    match parse_push(body).unwrap() {
        Progress::Done(commands) => commands,
        Progress::More => panic!("it is not whole"),
    }
}

fn rules(push: &[&str], protected: &[&str]) -> PushRules {
    let refs = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
    PushRules::new(refs(push), refs(protected))
}

fn update(old: &str, new: &str, name: &str) -> RefUpdate {
    RefUpdate { old: old.into(), new: new.into(), name: name.into() }
}

#[test]
fn a_push_is_known_however_it_is_written() {
    for (path, found) in [
        ("/a/b.git/git-receive-pack", Some(Service::Push)),
        ("/a/b.git/git-receive-pack?x=y", Some(Service::Push)),
        ("/a/b.git/git%2Dreceive%2dpack", Some(Service::Push)),
        ("/a/b.git/GIT-Receive-Pack", Some(Service::Push)),
        ("/a/b.git/git-receive-pack//", Some(Service::Push)),
        ("/a/b.git/git-receive-pack/%2f", Some(Service::Push)),
        ("/a/b.git%2fgit-receive-pack", Some(Service::Push)),
        ("/a/b.git/git-receive-pack;v=1", Some(Service::Push)),
        ("/a/b.git/git-upload-pack", Some(Service::Fetch)),
        ("/a/b.git/info/refs?service=git-receive-pack", Some(Service::PushRefs)),
        ("/a/b.git/info/refs?a=b&service=git%2dreceive-pack", Some(Service::PushRefs)),
        ("/a/b.git/info/refs?service=git-upload-pack&service=git-receive-pack", Some(Service::PushRefs)),
        ("/a/b.git/info/refs?service=git-upload-pack", Some(Service::FetchRefs)),
        ("/a/b.git/info/refs", None),
        ("/a/b.git/HEAD", None),
        ("/git-receive-pack.txt", None),
    ] {
        assert_eq!(service(path), found, "{path}");
    }
}

#[test]
fn a_list_is_read_in_any_pieces() {
    let body = push(&[(OLD, NEW, "refs/heads/agent/x"), (NONE, NEW, "refs/tags/v1"), (OLD, NONE, "refs/heads/b")]);
    let whole = commands(&body);
    assert_eq!(whole.updates.len(), 3);
    assert!(whole.updates[1].is_create() && whole.updates[2].is_delete());
    assert!(whole.has("side-band-64k") && !whole.push_options());
    assert!(body[whole.length..].starts_with(b"PACK"));
    let mut parser = Parser::new();
    let mut done = None;
    for byte in &body[..whole.length] {
        assert_eq!(done, None);
        if let Progress::Done(commands) = parser.push(&[*byte]).unwrap() {
            done = Some(commands);
        }
    }
    assert_eq!(done.as_ref(), Some(&whole));
    assert_eq!(parser.finish(), Ok(whole));
    // What git asks before a large push.
    assert_eq!(commands(b"0000").updates, []);
    // SHA-256, a shallow clone, line ends.
    let (old, new) = ("a".repeat(64), "b".repeat(64));
    let body =
        format!("{}{}0000", line(&format!("shallow {old}\n")), line(&format!("{old} {new} refs/heads/x\0 atomic\n")));
    assert_eq!(commands(body.as_bytes()).updates, [update(&old, &new, "refs/heads/x")]);
}

#[test]
fn what_git_would_read_differently_is_not_read() {
    let one = |text: &str| format!("{}0000", line(text)).into_bytes();
    let two = |first: &str, second: &str| format!("{}{}0000", line(first), line(second)).into_bytes();
    let good = format!("{OLD} {NEW} refs/heads/a");
    for (body, why) in [
        (b"zzzz".to_vec(), GitError::Length),
        (b"0004".to_vec(), GitError::Length),
        (b"0001".to_vec(), GitError::Length),
        (b"0002".to_vec(), GitError::Length),
        (b"+00f".to_vec(), GitError::Length),
        (one("hello"), GitError::Line),
        (one(&format!("{OLD} {NEW}")), GitError::Line),
        (one(&format!("{} {NEW} refs/heads/a", &OLD[1..])), GitError::Line),
        (one(&format!("{OLD} {} refs/heads/a", "a".repeat(64))), GitError::Line),
        (one(&format!("{OLD} {NEW} main")), GitError::Ref),
        (one(&format!("{OLD} {NEW} HEAD")), GitError::Ref),
        (one(&format!("{OLD} {NEW} refs/heads/../main")), GitError::Ref),
        (one(&format!("{OLD} {NEW} refs/heads/a\nrefs/heads/main")), GitError::Ref),
        (one(&format!("{OLD} {NEW} refs/heads/a b")), GitError::Ref),
        (one(&format!("{OLD} {NEW} refs//heads/main")), GitError::Ref),
        (one(&format!("{OLD} {NEW}  refs/heads/main")), GitError::Ref),
        (one(&format!("{OLD} {NEW} refs/heads/main.lock")), GitError::Ref),
        (two(&good, &good), GitError::Twice),
        (two(&format!("{good}\0 atomic"), &format!("{OLD} {NEW} refs/heads/b\0 push-options")), GitError::Line),
        (one(&format!("{good}\0 atomic\0 push-options")), GitError::Line),
        (one("push-cert\0 atomic\n"), GitError::Signed),
        (line("x").repeat(10).into_bytes(), GitError::Line),
    ] {
        assert_eq!(parse_push(&body), Err(why), "{:?}", String::from_utf8_lossy(&body));
    }
    let many: String = (0..5000).map(|number| line(&format!("{OLD} {NEW} refs/heads/n{number}"))).collect();
    assert_eq!(parse_push(many.as_bytes()), Err(GitError::TooLong));
    let mut parser = Parser::new();
    assert_eq!(parser.push(b"ffff"), Ok(Progress::More));
    assert_eq!(parser.finish(), Err(GitError::Short));
}

#[test]
fn rules_hold_for_each_ref_and_refuse_the_whole() {
    let agent = rules(&["refs/heads/agent/*"], &["refs/heads/agent/release*", "refs/heads/main"]);
    for (old, new, name, refused) in [
        (OLD, NEW, "refs/heads/agent/x", None),
        (NONE, NEW, "refs/heads/agent/x/y", None),
        (OLD, NEW, "refs/heads/main", Some("protected")),
        (OLD, NEW, "refs/heads/MAIN", Some("protected")),
        (OLD, NEW, "refs/heads/agent/release-1", Some("protected")),
        (OLD, NEW, "refs/heads/agent", Some("not allowed")),
        (OLD, NEW, "refs/heads/Agent/x", Some("not allowed")),
        (OLD, NEW, "refs/tags/agent/x", Some("not allowed")),
        (OLD, NEW, "refs/for/main", Some("not allowed")),
        (OLD, NONE, "refs/heads/agent/x", Some("deleting")),
        (NONE, NONE, "refs/heads/agent/x", Some("deleting")),
    ] {
        let checked = agent.check(&[update(old, new, name)]);
        assert_eq!(checked.is_err(), refused.is_some(), "{name}");
        if let (Err(why), Some(part)) = (checked, refused) {
            assert!(why.refs[0].why.contains(part) && why.message.contains(name), "{why:?}");
        }
    }
    let mixed = [update(OLD, NEW, "refs/heads/agent/x"), update(OLD, NEW, "refs/heads/main")];
    let refused = agent.check(&mixed).unwrap_err();
    assert_eq!(refused.refs.len(), 1);
    assert!(agent.clone().with_delete(true).check(&[update(OLD, NONE, "refs/heads/agent/x")]).is_ok());
    assert!(agent.clone().with_create(false).check(&[update(NONE, NEW, "refs/heads/agent/x")]).is_err());
    assert!(rules(&["*"], &[]).check(&mixed).is_ok());
    assert!(rules(&[], &[]).check(&mixed).is_err() && !rules(&[], &[]).allows_some());
    // Options make servers merge.
    let mut with = commands(&push(&[(OLD, NEW, "refs/heads/agent/x")]));
    assert!(agent.check_push(&with).is_ok());
    with.capabilities.push("push-options".into());
    assert!(agent.check_push(&with).is_err() && agent.with_options(true).check_push(&with).is_ok());
    for wrong in ["main", "refs/heads/a b", "refs/heads/**", "refs/heads/..", ""] {
        assert!(wrong.parse::<palisade_egress::git::RefPattern>().is_err(), "{wrong}");
    }
}

#[test]
fn the_refusal_is_what_git_shows() {
    let commands = commands(&push(&[(OLD, NEW, "refs/heads/agent/x"), (OLD, NEW, "refs/heads/main")]));
    let refused = rules(&["refs/heads/agent/*"], &["refs/heads/main"]).check_push(&commands).unwrap_err();
    let body = refusal(&commands, &refused);
    let mut rest = body.as_slice();
    let (mut words, mut report) = (Vec::new(), Vec::new());
    loop {
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..4]).unwrap(), 16).unwrap();
        if length == 0 {
            assert_eq!(rest.len(), 4);
            break;
        }
        match rest[4] {
            1 => report.extend_from_slice(&rest[5..length]),
            2 => words.extend_from_slice(&rest[5..length]),
            band => panic!("{band}"),
        }
        rest = &rest[length..];
    }
    let report = String::from_utf8(report).unwrap();
    let words = String::from_utf8(words).unwrap();
    assert!(report.starts_with("000eunpack ok\n") && report.ends_with("0000"), "{report}");
    assert!(report.contains("ng refs/heads/main protected by the egress policy\n"), "{report}");
    assert!(report.contains("ng refs/heads/agent/x not pushed"), "{report}");
    assert!(
        words.contains("refs/heads/main") && words.contains("refs/heads/agent/*") && words.ends_with('\n'),
        "{words}"
    );
    // A client without side bands gets the report, one without reports nothing that it would not understand.
    let plain = Commands { capabilities: vec!["report-status".into()], ..commands.clone() };
    assert!(refusal(&plain, &refused).starts_with(b"000eunpack ok\n"));
    assert_eq!(refusal(&Commands { capabilities: Vec::new(), ..commands }, &refused), b"");
}

proptest! {
    #[test]
    fn pieces_make_no_difference(
        names in proptest::collection::vec("refs/heads/[a-z]{1,6}", 0..6),
        noise in proptest::collection::vec(any::<u8>(), 0..40),
        cuts in proptest::collection::vec(1usize..30, 1..40),
        spoil in proptest::option::of((any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let list: Vec<_> = names.iter().map(|name| (OLD, NEW, name.as_str())).collect();
        let mut body = push(&list);
        body.extend_from_slice(&noise);
        if let Some((at, byte)) = spoil {
            let at = at.index(body.len());
            body[at] = byte;
        }
        let whole = parse_push(&body);
        let mut parser = Parser::new();
        let mut last = Ok(Progress::More);
        let mut rest = body.as_slice();
        for cut in cuts.iter().cycle() {
            if rest.is_empty() || !matches!(last, Ok(Progress::More)) {
                break;
            }
            let (piece, after) = rest.split_at((*cut).min(rest.len()));
            last = parser.push(piece);
            rest = after;
        }
        prop_assert_eq!(last, whole);
    }
}
