//! Workload identities, looked at as a verifier does that shares no code with the issuer.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use palisade_api::Timestamp;
use palisade_vault::identity::{
    Expected, Identity, IdentityError, Issuer, MAX_LIFETIME, Options, SKEW, VerifyError, Workload, verify,
};
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use serde_json::{Value, json};

const ISSUER: &str = "https://palisade.example";
const AUDIENCE: &str = "https://api.example.com";
const START: i64 = 1_790_000_000;
const HOUR: i64 = 3600;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros((START + seconds) * 1_000_000)
}

fn options() -> Options {
    Options::new(ISSUER, "agents.example.com")
}

fn workload(session: &str) -> Workload {
    Workload {
        workspace: "default".into(),
        environment: "env_01".into(),
        agent: "agent_01".into(),
        version: "3".into(),
        session: session.into(),
    }
}

fn expected(seconds: i64) -> Expected<'static> {
    Expected { issuer: ISSUER, audience: AUDIENCE, now: at(seconds), leeway: Duration::ZERO }
}

fn kids(jwks: &Value) -> Vec<String> {
    jwks["keys"].as_array().unwrap().iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect()
}

fn token(identity: &Identity, seconds: i64) -> String {
    identity.token(AUDIENCE, at(seconds)).unwrap().token.expose().to_owned()
}

/// Key files of a directory with this extension.
fn files(dir: &Path, extension: &str) -> BTreeSet<PathBuf> {
    let paths = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|its| its == extension)).collect()
}

/// Header and claims of a token whose signature holds under the key that it names: read by hand.
fn by_hand(token: &str, jwks: &Value) -> Option<(Value, Value)> {
    let parts: Vec<&str> = token.split('.').collect();
    let [header, claims, signature] = parts[..] else { return None };
    let json = |part| serde_json::from_slice::<Value>(&BASE64.decode(part).ok()?).ok();
    let (header_json, claims_json) = (json(header)?, json(claims)?);
    let key = jwks["keys"].as_array()?.iter().find(|key| key["kid"] == header_json["kid"])?;
    let mut point = vec![4];
    for coordinate in ["x", "y"] {
        point.extend(BASE64.decode(key[coordinate].as_str()?).ok()?);
    }
    let signature = BASE64.decode(signature).ok()?;
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
    key.verify(format!("{header}.{claims}").as_bytes(), &signature).ok()?;
    Some((header_json, claims_json))
}

#[test]
fn a_token_says_who_asks_whom_and_for_how_long() {
    let dir = tempfile::tempdir().unwrap();
    let issuer = Issuer::open(&dir.path().join("new/keys"), options(), at(0)).unwrap();
    let identity = issuer.begin(workload("sesn_01")).unwrap();
    let issued = identity.token(AUDIENCE, at(10)).unwrap();
    let jwks = issuer.jwks(at(10));
    let (header, mut claims) = by_hand(issued.token.expose(), &jwks).unwrap();
    assert_eq!(header, json!({ "alg": "ES256", "typ": "JWT", "kid": kids(&jwks)[0] }));
    assert_eq!((issued.key, issued.expires_at), (kids(&jwks)[0].clone(), at(310)));
    let id = claims.as_object_mut().unwrap().remove("jti").unwrap();
    assert_eq!((id.as_str().unwrap(), id.as_str().unwrap().len()), (issued.id.as_str(), 22));
    let subject =
        "spiffe://agents.example.com/workspace/default/environment/env_01/agent/agent_01/version/3/session/sesn_01";
    assert_eq!(identity.subject(), subject);
    assert_eq!(
        claims,
        json!({
            "iss": ISSUER, "sub": subject, "aud": AUDIENCE, "iat": START + 10, "nbf": START + 10, "exp": START + 310,
            "palisade_workspace": "default", "palisade_environment": "env_01", "palisade_agent": "agent_01",
            "palisade_agent_version": "3", "palisade_session": "sesn_01",
        })
    );
    assert_ne!(identity.token(AUDIENCE, at(10)).unwrap().id, issued.id);
    assert!(!format!("{issued:?}", issued = identity.token(AUDIENCE, at(10)).unwrap()).contains("eyJ"));
    for audience in ["", "a\nb", &"x".repeat(513)] {
        assert!(matches!(identity.token(audience, at(10)), Err(IdentityError::Audience)));
    }

    assert!(jwks["keys"][0].get("d").is_none());
    let discovery = issuer.discovery();
    assert_eq!(discovery["issuer"], ISSUER);
    assert_eq!(discovery["jwks_uri"], format!("{ISSUER}/.well-known/jwks.json"));
    assert_eq!(discovery["id_token_signing_alg_values_supported"], json!(["ES256"]));
}

#[test]
fn what_is_not_exactly_right_does_not_verify() {
    let dir = tempfile::tempdir().unwrap();
    let issuer = Issuer::open(dir.path(), options(), at(0)).unwrap();
    let identity = issuer.begin(workload("sesn_01")).unwrap();
    let (token, jwks) = (token(&identity, 0), issuer.jwks(at(0)));
    let refused = |expected: &Expected<'_>| verify(&token, &jwks, expected).unwrap_err();
    assert_eq!(verify(&token, &jwks, &expected(0)).unwrap().sub, identity.subject());
    assert_eq!(refused(&Expected { audience: "https://other.example", ..expected(0) }), VerifyError::Audience);
    assert_eq!(refused(&Expected { issuer: "https://other.example", ..expected(0) }), VerifyError::Issuer);

    // Clocks that differ.
    let leeway = Duration::from_secs(60);
    for (seconds, exact, with_leeway) in [
        (-61, Err(VerifyError::Early), Err(VerifyError::Early)),
        (-60, Err(VerifyError::Early), Ok(())),
        (-1, Err(VerifyError::Early), Ok(())),
        (299, Ok(()), Ok(())),
        (300, Err(VerifyError::Expired), Ok(())),
        (359, Err(VerifyError::Expired), Ok(())),
        (360, Err(VerifyError::Expired), Err(VerifyError::Expired)),
    ] {
        let expected = expected(seconds);
        assert_eq!(verify(&token, &jwks, &expected).map(drop), exact, "{seconds}");
        assert_eq!(verify(&token, &jwks, &Expected { leeway, ..expected }).map(drop), with_leeway, "{seconds}");
    }

    // Any other character, and what is known of attacks on tokens.
    for index in 0..token.len() {
        let mut other = token.clone().into_bytes();
        other[index] = if other[index] == b'A' { b'B' } else { b'A' };
        assert!(verify(std::str::from_utf8(&other).unwrap(), &jwks, &expected(0)).is_err(), "character {index}");
    }
    let kid = &kids(&jwks)[0];
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let claims = signed.split_once('.').unwrap().1;
    let with = |header: Value, signature: &str| format!("{}.{claims}.{signature}", BASE64.encode(header.to_string()));
    for (forged, why) in [
        (with(json!({ "alg": "none", "typ": "JWT", "kid": kid }), ""), VerifyError::Algorithm),
        (with(json!({ "alg": "HS256", "typ": "JWT", "kid": kid }), signature), VerifyError::Algorithm),
        (with(json!({ "alg": "ES256", "typ": "JWT", "kid": kid }), signature), VerifyError::Signature),
        (with(json!({ "alg": "ES256", "typ": "JWT", "kid": kid }), &BASE64.encode([0; 64])), VerifyError::Signature),
        (with(json!({ "alg": "ES256", "typ": "JWT", "kid": "other" }), signature), VerifyError::UnknownKey),
        (with(json!({ "alg": "ES256", "typ": "JWT", "kid": kid, "jwk": {} }), signature), VerifyError::Malformed),
        (format!("{token}="), VerifyError::Malformed),
        (format!("{token}."), VerifyError::Malformed),
        (signed.to_owned(), VerifyError::Malformed),
        ("x".repeat(9000), VerifyError::Malformed),
        (String::new(), VerifyError::Malformed),
    ] {
        assert_eq!(verify(&forged, &jwks, &expected(0)), Err(why), "{forged}");
    }
}

#[test]
fn a_session_that_ended_gets_no_token() {
    let dir = tempfile::tempdir().unwrap();
    let issuer = Issuer::open(dir.path(), options(), at(0)).unwrap();
    let ended = |identity: &Identity| matches!(identity.token(AUDIENCE, at(0)), Err(IdentityError::Ended { .. }));

    let first = issuer.begin(workload("sesn_01")).unwrap();
    let clone = first.clone();
    assert!(matches!(issuer.begin(workload("sesn_01")), Err(IdentityError::Begun { .. })));
    let other = issuer.begin(workload("sesn_02")).unwrap();
    drop(first);
    assert!(!ended(&clone));
    clone.end();
    assert!(ended(&clone) && !ended(&other));
    assert!(!issuer.end("sesn_01"));

    // Begun anew, the old one stays ended, and its end is not that of the new one.
    let again = issuer.begin(workload("sesn_01")).unwrap();
    clone.end();
    drop(clone);
    assert!(!ended(&again));
    assert!(issuer.end("sesn_01") && !issuer.end("sesn_01"));
    assert!(ended(&again));

    // Whoever forgets to end it has ended it.
    drop(other);
    issuer.begin(workload("sesn_02")).unwrap();
}

#[test]
fn no_part_of_a_name_passes_for_another() {
    let dir = tempfile::tempdir().unwrap();
    let issuer = Issuer::open(dir.path(), options(), at(0)).unwrap();
    for hostile in [
        "",
        ".",
        "..",
        "a/b",
        "a/session/b",
        "/",
        "a%2Fb",
        "%2e%2e",
        "a b",
        "a\nb",
        "a\0",
        "ü",
        "a?b",
        "a#b",
        "a:b",
        "a@b",
        "\\",
        "a\u{202e}",
        &"x".repeat(129),
    ] {
        let parts: [fn(&mut Workload) -> &mut String; 5] = [
            |workload| &mut workload.workspace,
            |workload| &mut workload.environment,
            |workload| &mut workload.agent,
            |workload| &mut workload.version,
            |workload| &mut workload.session,
        ];
        for part in parts {
            let mut workload = workload("sesn_01");
            *part(&mut workload) = hostile.to_owned();
            assert!(matches!(issuer.begin(workload), Err(IdentityError::Segment { .. })), "{hostile:?}");
        }
    }
    issuer.begin(Workload { workspace: "...".into(), version: "x".repeat(128), ..workload("A-z_0.9") }).unwrap();

    for domain in ["", "Upper.example", "a/b", "a%20b", "a b", "a:1", "user@a", &"x".repeat(256)] {
        let outcome =
            Issuer::open(&dir.path().join("other"), Options { trust_domain: domain.to_owned(), ..options() }, at(0));
        assert!(matches!(outcome, Err(IdentityError::TrustDomain(_))), "{domain:?}");
    }
    for url in [
        "",
        "palisade",
        "http://palisade.example",
        "https://palisade.example/",
        "https://PALISADE.example",
        "https://a@b.example",
        "https://a.example?x",
        "https://a.example#x",
        "https://a.example/../b",
        "ftp://a.example",
        "http://localhost.example",
    ] {
        let outcome = Issuer::open(&dir.path().join("other"), Options { issuer: url.to_owned(), ..options() }, at(0));
        assert!(matches!(outcome, Err(IdentityError::Option { option: "issuer", .. })), "{url:?}");
    }
    for url in ["https://a.example", "https://a.example:8443/identity", "http://127.0.0.1:8080", "http://[::1]:1"] {
        Issuer::open(&dir.path().join("other"), Options { issuer: url.to_owned(), ..options() }, at(0)).unwrap();
    }
    let outcome =
        Issuer::open(dir.path(), Options { lifetime: MAX_LIFETIME + Duration::from_secs(1), ..options() }, at(0));
    assert!(matches!(outcome, Err(IdentityError::Option { option: "lifetime", .. })));
}

#[test]
fn keys_are_shown_before_they_sign_and_until_their_tokens_have_expired() {
    let dir = tempfile::tempdir().unwrap();
    let mut issuer = Issuer::open(dir.path(), options(), at(0)).unwrap();
    let mut identity = issuer.begin(workload("sesn_01")).unwrap();
    let ahead = i64::try_from(issuer.jwks_max_age().as_secs()).unwrap();
    // Tokens of the last hours, and key sets as a verifier keeps them: no token in its time is met by a set that lacks its key.
    let (mut tokens, mut sets) = (Vec::new(), Vec::new());
    let (mut used, mut most) = (BTreeSet::new(), 0);
    for seconds in (0..75 * HOUR).step_by(150) {
        if seconds % (7 * HOUR) == 0 {
            // A restart changes nothing.
            drop((identity, issuer));
            issuer = Issuer::open(dir.path(), options(), at(seconds)).unwrap();
            identity = issuer.begin(workload("sesn_01")).unwrap();
        }
        let issued = identity.token(AUDIENCE, at(seconds)).unwrap();
        used.insert(issued.key);
        tokens.push((seconds, issued.token));
        sets.push((seconds, issuer.jwks(at(seconds))));
        tokens.retain(|(issued, _)| seconds - issued < 300);
        sets.retain(|(seen, _)| seconds - seen <= ahead);
        for (_, token) in &tokens {
            for set in [&sets[0].1, &sets[sets.len() - 1].1] {
                verify(token.expose(), set, &expected(seconds)).unwrap();
                by_hand(token.expose(), set).unwrap();
            }
        }
        most = most.max(kids(&sets[sets.len() - 1].1).len());
    }
    assert_eq!((used.len(), most), (4, 2));
    // One private half is there, and what has expired is not shown.
    assert_eq!((files(dir.path(), "key").len(), files(dir.path(), "pub").len()), (1, 0));
    let last = kids(&issuer.jwks(at(75 * HOUR)));
    assert_eq!(last.len(), 1);

    // After a long sleep there is a key at once, and another soon.
    let late = identity.token(AUDIENCE, at(900 * HOUR)).unwrap();
    assert_eq!((late.key, kids(&issuer.jwks(at(900 * HOUR))).len()), (last[0].clone(), 2));
    assert_ne!(identity.token(AUDIENCE, at(901 * HOUR)).unwrap().key, last[0]);
    let kept = i64::try_from((MAX_LIFETIME + SKEW).as_secs()).unwrap();
    assert_eq!(kids(&issuer.jwks(at(901 * HOUR + kept))).len(), 2);
    assert_eq!(kids(&issuer.jwks(at(901 * HOUR + kept + 1))).len(), 1);
}

#[test]
fn a_clock_that_is_set_back_stops_neither_tokens_nor_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let issuer = Issuer::open(dir.path(), options(), at(0)).unwrap();
    let identity = issuer.begin(workload("sesn_01")).unwrap();
    let first = identity.token(AUDIENCE, at(-600)).unwrap().key;
    assert_eq!(identity.token(AUDIENCE, at(0)).unwrap().key, first);

    // Years: the key stays, with the new time as its own, and is changed a day later.
    let back = -70_000 * HOUR;
    let token = token(&identity, back);
    verify(&token, &issuer.jwks(at(back)), &expected(back)).unwrap();
    drop((identity, issuer));
    let issuer = Issuer::open(dir.path(), options(), at(back)).unwrap();
    let identity = issuer.begin(workload("sesn_01")).unwrap();
    assert_eq!(identity.token(AUDIENCE, at(back)).unwrap().key, first);
    assert_eq!(kids(&issuer.jwks(at(back + 23 * HOUR))).len(), 2);
    assert_ne!(identity.token(AUDIENCE, at(back + 24 * HOUR)).unwrap().key, first);
}

#[test]
fn a_stolen_key_is_replaced_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let issuer = Issuer::open(dir.path(), options(), at(0)).unwrap();
    let identity = issuer.begin(workload("sesn_01")).unwrap();
    let before = token(&identity, 0);
    issuer.jwks(at(23 * HOUR + 1));
    issuer.replace_keys(at(23 * HOUR + 1)).unwrap();
    let jwks = issuer.jwks(at(23 * HOUR + 1));
    assert_eq!((kids(&jwks).len(), files(dir.path(), "key").len()), (1, 1));
    assert_eq!(verify(&before, &jwks, &expected(0)), Err(VerifyError::UnknownKey));
    let after = token(&identity, 23 * HOUR + 1);
    verify(&after, &jwks, &expected(23 * HOUR + 1)).unwrap();
}

#[test]
fn keys_that_others_could_read_or_plant_are_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("keys");
    let issuer = Issuer::open(&dir, options(), at(0)).unwrap();
    assert!(matches!(Issuer::open(&dir, options(), at(0)), Err(IdentityError::InUse { .. })));
    drop(issuer);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let key = files(&dir, "key").pop_first().unwrap();
    assert_eq!((mode(&dir), mode(&key)), (0o700, 0o600));

    let open = || Issuer::open(&dir, options(), at(0));
    for (path, bad, good) in [(&key, 0o640, 0o600), (&key, 0o604, 0o600), (&dir, 0o770, 0o700), (&dir, 0o702, 0o700)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(bad)).unwrap();
        let why = open().unwrap_err();
        assert!(matches!(&why, IdentityError::Exposed { mode, .. } if *mode == bad), "{why}");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(good)).unwrap();
        open().unwrap();
    }

    // Another key under its name, half a key, a link.
    let whole = std::fs::read(&key).unwrap();
    let other = tempfile::tempdir().unwrap();
    drop(Issuer::open(other.path(), options(), at(0)).unwrap());
    let others = std::fs::read(files(other.path(), "key").pop_first().unwrap()).unwrap();
    for bytes in [&others[..], &whole[..whole.len() / 2], b""] {
        std::fs::write(&key, bytes).unwrap();
        let why = open().unwrap_err();
        assert!(matches!(&why, IdentityError::Damaged { path, .. } if *path == key), "{why}");
        assert!(why.to_string().contains("Remove it"));
    }
    std::fs::write(dir.join("elsewhere"), &whole).unwrap();
    std::fs::remove_file(&key).unwrap();
    std::os::unix::fs::symlink(dir.join("elsewhere"), &key).unwrap();
    assert!(matches!(open(), Err(IdentityError::Io { .. })));
    std::fs::remove_file(&key).unwrap();
    open().unwrap();
}

/// Tells the child process where its keys are, and the time in hours that it begins with.
const KEYS: &str = "PALISADE_IDENTITY_CRASH";
const TIME: &str = "PALISADE_IDENTITY_TIME";

/// The issuer, in the child: goes through time in steps of ten minutes and says each token with its time. Elsewhere it does nothing.
#[test]
fn process_that_rotates() {
    let Some(dir) = std::env::var_os(KEYS) else { return };
    let from: i64 = std::env::var(TIME).unwrap().parse().unwrap();
    let fast =
        Options { rotate_after: Duration::from_secs(3600), publish_ahead: Duration::from_secs(1200), ..options() };
    let issuer = Issuer::open(Path::new(&dir), fast, at(from)).unwrap();
    let identity = issuer.begin(workload("sesn_01")).unwrap();
    println!();
    for seconds in (from..).step_by(600) {
        let line = format!("{seconds} {}\n", token(&identity, seconds));
        // The reader may be gone a moment before this process is.
        if std::io::stdout().lock().write_all(line.as_bytes()).is_err() {
            return;
        }
    }
}

#[test]
fn a_crash_during_rotation_leaves_keys_that_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let fast =
        Options { rotate_after: Duration::from_secs(3600), publish_ahead: Duration::from_secs(1200), ..options() };
    let mut now = 0;
    for kill in 0..60_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "identity::process_that_rotates", "--nocapture"])
            .env(KEYS, dir.path())
            .env(TIME, now.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut told: Vec<String> =
            out.by_ref().take(usize::try_from(kill % 23).unwrap()).map(Result::unwrap).collect();
        for _ in 0..kill * 7919 % 100_003 {
            std::hint::spin_loop();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        told.extend(out.map_while(Result::ok));
        // The last line may be cut short.
        let whole = |line: &String| {
            let (seconds, token) = line.split_once(' ')?;
            (token.split('.').nth(2)?.len() == 86).then(|| Some((seconds.parse::<i64>().ok()?, token.to_owned())))?
        };
        let last = told.iter().rev().find_map(whole);
        now = last.as_ref().map_or(now, |(seconds, _)| *seconds);

        let issuer = Issuer::open(dir.path(), fast.clone(), at(now)).unwrap();
        let jwks = issuer.jwks(at(now));
        if let Some((seconds, token)) = &last {
            verify(token, &jwks, &expected(*seconds)).unwrap();
        }
        let identity = issuer.begin(workload("sesn_01")).unwrap();
        verify(&token(&identity, now), &jwks, &expected(now)).unwrap();
        assert!(files(dir.path(), "new").is_empty());
        // One that signs, and perhaps the next; private halves of others are gone.
        let private = files(dir.path(), "key").len();
        assert!((1..=2).contains(&private) && kids(&jwks).len() <= 3, "{private} {jwks}");
    }
    assert!(now > 20 * HOUR, "time went on by {now} s");
}
