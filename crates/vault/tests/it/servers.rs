//! The servers, through fakes that check what they are sent.

use std::sync::Arc;
use std::time::Duration;

use palisade_testkit::secrets::{
    Answer, Fake, FakeAws, FakeAwsRoles, FakeAzure, FakeGoogle, FakeHashicorp, FakeOnePassword, Lends,
    SERVICE_ACCOUNT_KEY, Service,
};
use serde_json::json;

use crate::rig::{ManualClock, Rig, private, reference, refused};

const HOUR: Duration = Duration::from_secs(3600);

fn yaml_vault(url: &str, auth: &str) -> String {
    format!(
        "vault:\n  prod:\n    address: {url}\n    auth: {auth}\n    mounts: {{secret: kv, team/kv: kv, database: dynamic}}\n"
    )
}

const TOKEN: &str = "{method: token, token: 'env:TOKEN'}";
const TOKEN_IS: &[(&str, &str)] = &[("TOKEN", "hvs.CANARY-root")];

async fn hashicorp(clock: &Arc<ManualClock>) -> Fake<FakeHashicorp> {
    let fake = Fake::start(FakeHashicorp::default(), clock.truth()).await;
    fake.service.token("hvs.CANARY-root");
    fake
}

#[tokio::test]
async fn kv_secrets_are_read_kept_and_rotated() {
    let clock = Arc::new(ManualClock::default());
    let fake = hashicorp(&clock).await;
    fake.service.write("secret/team/git hub", json!({"token": "CANARY-1", "user": "CANARY-u", "port": 5432}));
    fake.service.write("team/kv/one", json!({"only": "CANARY-only"}));
    let rig = Rig::new(clock.clone(), &yaml_vault(fake.url(), TOKEN), TOKEN_IS);

    assert_eq!(rig.value("vault:prod/secret/team/git hub#token").await.unwrap(), "CANARY-1");
    assert_eq!(rig.value("vault:prod/secret/team/git hub#port").await.unwrap(), "5432");
    assert_eq!(rig.value("vault:prod/team/kv/one").await.unwrap(), "CANARY-only");
    assert_eq!(fake.count("/v1/secret/data/team/git%20hub"), 1, "one fetch serves all fields");
    refused(rig.value("vault:prod/secret/team/git hub").await, &["names no field", "`token`"]);
    refused(rig.value("vault:prod/secret/team/git hub#pass").await, &["`pass`", "`port`, `token`, `user`"]);
    refused(rig.value("vault:prod/secret/none#x").await, &["holds no such secret", "`none`"]);
    refused(rig.value("vault:prod/other/x#x").await, &["mounts", "database, secret, team/kv"]);
    refused(rig.value("vault:stage/secret/x#x").await, &["names no configured source", "`stage` under `vault:`"]);

    fake.service.write("secret/team/git hub", json!({"token": "CANARY-2"}));
    assert_eq!(rig.value("vault:prod/secret/team/git hub#token").await.unwrap(), "CANARY-1");
    // Whoever uses it saw it refused: the next use asks again, once it is not brand new.
    clock.pass(6);
    rig.session().rejected(&reference("vault:prod/secret/team/git hub#token"));
    assert_eq!(rig.value("vault:prod/secret/team/git hub#token").await.unwrap(), "CANARY-2");
    fake.service.write("secret/team/git hub", json!({"token": "CANARY-3"}));
    clock.pass(61);
    assert_eq!(rig.value("vault:prod/secret/team/git hub#token").await.unwrap(), "CANARY-3");
    fake.service.delete("secret/team/git hub");
    clock.pass(61);
    refused(rig.value("vault:prod/secret/team/git hub#token").await, &["deleted", "undelete"]);
    rig.check();
}

#[tokio::test]
async fn a_server_that_cannot_serve_is_left_alone_for_a_while_and_others_go_on() {
    let clock = Arc::new(ManualClock::default());
    let (down, well) = (hashicorp(&clock).await, hashicorp(&clock).await);
    for fake in [&down, &well] {
        fake.service.write("secret/a", json!({"t": "CANARY-a"}));
        fake.service.write("secret/b", json!({"t": "CANARY-b"}));
    }
    let other = yaml_vault(well.url(), TOKEN).replace("vault:\n", "").replace("prod", "well");
    let rig = Rig::new(clock.clone(), &(yaml_vault(down.url(), TOKEN) + &other), TOKEN_IS);
    assert_eq!(rig.value("vault:prod/secret/a#t").await.unwrap(), "CANARY-a");

    down.service.seal(true);
    // What is kept is used as long as it may be, and not a moment longer.
    assert_eq!(rig.value("vault:prod/secret/a#t").await.unwrap(), "CANARY-a");
    clock.pass(61);
    refused(rig.value("vault:prod/secret/a#t").await, &["does not answer", "sealed", "asked again in 1 s"]);
    let asked = down.asked().len();
    refused(rig.value("vault:prod/secret/b#t").await, &["does not answer", "asked again in"]);
    assert_eq!(down.asked().len(), asked, "nothing is asked of a server that is left alone");
    assert_eq!(rig.value("vault:well/secret/a#t").await.unwrap(), "CANARY-a");
    clock.pass(2);
    refused(rig.value("vault:prod/secret/b#t").await, &["asked again in 2 s"]);
    let states = rig.vault.sources();
    assert_eq!(
        states.iter().filter(|state| state.down.is_some()).map(|state| state.name.as_str()).collect::<Vec<_>>(),
        ["prod"]
    );

    down.service.seal(false);
    clock.pass(3);
    assert_eq!(rig.value("vault:prod/secret/b#t").await.unwrap(), "CANARY-b");
    rig.check();
}

#[tokio::test]
async fn a_server_that_is_not_there_and_answers_that_cannot_be_used_fail_closed() {
    let clock = Arc::new(ManualClock::default());
    let fake = hashicorp(&clock).await;
    fake.service.write("secret/a", json!({"t": "CANARY"}));
    let rig = Rig::new(clock.clone(), &yaml_vault(fake.url(), TOKEN), TOKEN_IS);
    assert!(rig.value("vault:prod/secret/a#t").await.is_ok());
    let huge = format!(r#"{{"data":{{"data":{{"t":"{}"}}}}}}"#, "CANARY".repeat(60_000));
    for (status, body, needles) in [
        (200, "{\"data\": {\"data\": {\"t\": \"CANARY", vec!["cut off"]),
        (200, "CANARY", vec!["no JSON"]),
        (200, r#"{"data": "CANARY"}"#, vec!["another shape"]),
        (200, r#"{"data": {"data": ["CANARY"]}}"#, vec!["no JSON object"]),
        (200, huge.as_str(), vec!["more than", "bytes"]),
        (307, "CANARY", vec!["redirects"]),
        (403, r#"{"errors": ["CANARY"]}"#, vec!["refused", "in `env:TOKEN`"]),
        (404, r#"{"errors": ["CANARY"]}"#, vec!["nothing at `a`"]),
        (429, "CANARY", vec!["too often"]),
        (500, "CANARY", vec!["status 500"]),
    ] {
        clock.pass(120);
        fake.fault(Some(Answer::new(status, body)));
        refused(rig.value("vault:prod/secret/a#t").await, &needles);
        fake.fault(None);
        clock.pass(120);
        assert!(rig.value("vault:prod/secret/a#t").await.is_ok(), "it comes back after {status}");
    }
    let nowhere = Rig::new(clock.clone(), &yaml_vault("http://127.0.0.1:1", TOKEN), TOKEN_IS);
    refused(nowhere.value("vault:prod/secret/a#t").await, &["does not answer", "no connection", "127.0.0.1:1"]);
    nowhere.check();
    rig.check();
}

#[tokio::test]
async fn every_login_works_and_a_wrong_one_is_explained_and_not_hammered() {
    let clock = Arc::new(ManualClock::default());
    let fake = hashicorp(&clock).await;
    fake.service.write("secret/a", json!({"t": "CANARY"}));
    fake.service.write("secret/b", json!({"t": "CANARY"}));
    fake.service.login("approle", json!({"role_id": "r", "secret_id": "CANARY-id"}), HOUR);
    fake.service.login("kubernetes", json!({"role": "r", "jwt": "CANARY-jwt"}), HOUR);
    fake.service.login("ci", json!({"role": "r", "jwt": "CANARY-jwt"}), HOUR);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("jwt");
    private(&file, "CANARY-jwt\n");
    let variables = [("ID", "CANARY-id"), ("JWT", "CANARY-jwt"), ("WRONG", "CANARY-wrong")];
    for auth in [
        "{method: approle, role_id: r, secret_id: 'env:ID'}",
        &format!("{{method: kubernetes, role: r, token: 'file:{}'}}", file.display()),
        "{method: jwt, mount: ci, role: r, token: 'env:JWT'}",
    ] {
        let rig = Rig::new(clock.clone(), &yaml_vault(fake.url(), auth), &variables);
        assert_eq!(rig.value("vault:prod/secret/a#t").await.unwrap(), "CANARY", "{auth}");
        // The server has forgotten the login, as after a restore: one new login, and it goes on.
        let logins = fake.count("/login");
        fake.service.forget_tokens();
        clock.pass(61);
        assert_eq!(rig.value("vault:prod/secret/a#t").await.unwrap(), "CANARY");
        assert_eq!(fake.count("/login"), logins + 1);
        // Nothing is left behind at the server.
        assert_eq!(fake.service.tokens(), 1);
        rig.vault.close().await;
        assert_eq!(fake.service.tokens(), 0);
        refused(rig.value("vault:prod/secret/a#t").await, &["stopping"]);
        rig.check();
    }
    for (auth, needles) in [
        ("{method: approle, role_id: r, secret_id: 'env:WRONG'}", ["auth/approle", "status 400"]),
        ("{method: jwt, mount: ci, role: r, token: 'env:WRONG'}", ["auth/ci", "status 403"]),
        ("{method: jwt, mount: none, role: r, token: 'env:JWT'}", ["auth/none", "`auth.mount`"]),
        ("{method: jwt, role: r, token: 'env:UNSET'}", ["`UNSET`", "not set"]),
        ("{method: jwt, role: r, token: 'credential:vault'}", ["CREDENTIALS_DIRECTORY", "LoadCredential"]),
        ("{method: token, token: 'env:WRONG'}", ["does not know the token", "env:WRONG"]),
    ] {
        let rig = Rig::new(clock.clone(), &yaml_vault(fake.url(), auth), &variables);
        refused(rig.value("vault:prod/secret/a#t").await, &needles);
        let asked = fake.asked().len();
        refused(rig.value("vault:prod/secret/b#t").await, &needles);
        assert_eq!(fake.asked().len(), asked, "a refused login is not tried again at once");
        rig.check();
    }
    let rig = Rig::new(
        clock.clone(),
        &yaml_vault(fake.url(), "{method: approle, role_id: r, secret_id: 'env:ID'}"),
        &variables,
    );
    fake.service.deny("secret/data/b");
    refused(rig.value("vault:prod/secret/b#t").await, &["policy", "secret/data/b"]);
    assert_eq!(rig.value("vault:prod/secret/a#t").await.unwrap(), "CANARY");
    rig.check();
}

#[tokio::test]
async fn leases_are_of_one_session_renewed_and_revoked_at_its_end() {
    let clock = Arc::new(ManualClock::default());
    let fake = hashicorp(&clock).await;
    fake.service.role("database/creds/app", Duration::from_secs(60), HOUR);
    let rig = Rig::new(clock.clone(), &yaml_vault(fake.url(), TOKEN), TOKEN_IS);
    let (one, two) = (rig.vault.session("one"), rig.vault.session("two"));
    let password = "vault:prod/database/creds/app#password";
    let user = "vault:prod/database/creds/app#username";
    assert_eq!(rig.value_in(&one, password).await.unwrap(), "CANARY-password-1");
    assert_eq!(rig.value_in(&one, user).await.unwrap(), "user-1", "name and password are of one lease");
    assert_eq!(rig.value_in(&two, user).await.unwrap(), "user-2");

    // Far beyond one lease's time, kept up by renewals.
    for _ in 0..12 {
        clock.pass(31);
        rig.vault.tend().await;
    }
    assert_eq!(rig.value_in(&one, user).await.unwrap(), "user-1");
    // Revoked by somebody at the server in mid-use: found when it is renewed, and replaced.
    fake.service.revoke_all();
    clock.pass(31);
    rig.vault.tend().await;
    assert_eq!(rig.value_in(&one, user).await.unwrap(), "user-3");
    // Nobody renewed it in time: it is not used any more.
    clock.pass(61);
    assert_eq!(rig.value_in(&one, user).await.unwrap(), "user-4");
    assert_eq!(rig.value_in(&two, user).await.unwrap(), "user-5");
    assert_eq!(fake.service.leases().len(), 2);

    assert_eq!(rig.vault.end_session("one").await, []);
    assert_eq!(fake.service.leases(), ["database/creds/app/lease0000000000000005"]);
    refused(rig.value_in(&one, user).await, &["session has ended"]);
    assert_eq!(rig.value_in(&two, user).await.unwrap(), "user-5");

    // The server is away when the session ends: the lease is not forgotten.
    fake.service.seal(true);
    let left = rig.vault.end_session("two").await;
    rig.show(&left);
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].of, "database/creds/app");
    fake.service.seal(false);
    clock.pass(2);
    rig.vault.tend().await;
    assert!(fake.service.leases().is_empty());
    rig.check();
}

#[tokio::test]
async fn the_login_is_kept_up_so_that_its_leases_live_and_a_lost_one_is_replaced() {
    let clock = Arc::new(ManualClock::default());
    let fake = hashicorp(&clock).await;
    fake.service.login("approle", json!({"role_id": "r", "secret_id": "CANARY-id"}), Duration::from_secs(100));
    fake.service.role("database/creds/app", HOUR, HOUR);
    let auth = "{method: approle, role_id: r, secret_id: 'env:ID'}";
    let rig = Rig::new(clock.clone(), &yaml_vault(fake.url(), auth), &[("ID", "CANARY-id")]);
    let user = "vault:prod/database/creds/app#username";
    let first = rig.value(user).await.unwrap();
    for _ in 0..10 {
        clock.pass(60);
        rig.vault.tend().await;
    }
    assert_eq!(rig.value(user).await.unwrap(), first);
    assert_eq!(fake.service.leases().len(), 1, "the lease outlived its login's first time");
    assert_eq!(fake.count("/login"), 1);

    // Revoked here: the lease goes, and the next use is refused although the value was kept.
    assert_eq!(rig.vault.revoke(&reference("vault:prod/database/creds/app")).await, []);
    assert!(fake.service.leases().is_empty());
    refused(rig.value(user).await, &["was revoked"]);
    assert!(rig.vault.allow(&reference("vault:prod/database/creds/app")));
    assert_ne!(rig.value(user).await.unwrap(), first);

    // Trying a reference leaves nothing behind.
    let before = fake.service.leases();
    let probe = rig.vault.probe(&reference(user)).await.unwrap();
    assert_eq!(probe.lease, Some(HOUR));
    assert_eq!(fake.service.leases(), before);
    rig.check();
}

fn yaml_aws(url: &str, credentials: &str) -> String {
    format!("aws:\n  main:\n    region: eu-central-1\n    endpoint: {url}\n    auth: {credentials}\n")
}

#[tokio::test]
async fn aws_takes_the_signature_and_explains_refusals() {
    let clock = Arc::new(ManualClock::default());
    let plain = Fake::start(FakeAws::new("eu-central-1", "AKID", "CANARY/key+", None), clock.truth()).await;
    let session = FakeAws::new("eu-central-1", "AKID", "CANARY/key+", Some("CANARY-session"));
    let session = Fake::start(session, clock.truth()).await;
    for fake in [&plain, &session] {
        fake.service.put("prod/db", json!({"SecretString": "{\"user\": \"u\", \"password\": \"CANARY-p\"}"}));
        fake.service.put("binary", json!({"SecretBinary": "Q0FOQVJZLWI="}));
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("credentials");
    private(
        &file,
        "[other]\naws_access_key_id = no\n[work]\naws_access_key_id = AKID\naws_secret_access_key=CANARY/key+\n",
    );
    let variables = [
        ("AWS_ACCESS_KEY_ID", "AKID"),
        ("AWS_SECRET_ACCESS_KEY", "CANARY/key+"),
        ("AWS_SESSION_TOKEN", "CANARY-session"),
        ("WRONG", "CANARY-wrong"),
    ];
    let from_file = format!("{{method: file, path: {}, profile: work}}", file.display());
    for (fake, credentials) in [
        (&session, "{method: environment}"),
        (&plain, &from_file),
        (&plain, "{method: keys, access_key_id: AKID, secret_access_key: 'env:AWS_SECRET_ACCESS_KEY'}"),
    ] {
        let rig = Rig::new(clock.clone(), &yaml_aws(fake.url(), credentials), &variables);
        assert_eq!(rig.value("aws:main/prod/db#password").await.unwrap(), "CANARY-p");
        assert_eq!(rig.value("aws:main/binary").await.unwrap(), "CANARY-b");
        refused(rig.value("aws:main/none").await, &["no secret `none` in eu-central-1"]);
        rig.check();
    }
    let missing = folder.path().join("none");
    for (credentials, needles) in [
        (
            "{method: keys, access_key_id: AKID, secret_access_key: 'env:WRONG'}",
            ["signature does not hold", "secret access key"],
        ),
        (
            "{method: keys, access_key_id: AKIX, secret_access_key: 'env:WRONG'}",
            ["does not know the access key", "Unrecognized"],
        ),
        ("{method: environment}", ["token has ended", "ExpiredToken"]),
        (&format!("{{method: file, path: {}}}", file.display()), ["no profile `default`", "aws_access_key_id"]),
        (&format!("{{method: file, path: {}}}", missing.display()), ["none", "cannot be opened"]),
    ] {
        let rig = Rig::new(clock.clone(), &yaml_aws(plain.url(), credentials), &variables);
        refused(rig.value("aws:main/prod/db#password").await, &needles);
        rig.check();
    }
    let rig = Rig::new(clock.clone(), &yaml_aws(plain.url(), &from_file), &[]);
    clock.skew(3600);
    refused(rig.value("aws:main/prod/db#password").await, &["clock says", "NTP"]);
    rig.check();
}

/// Whoever lends keys: what lends, how to log in, and the variables.
async fn aws_lenders(
    clock: &Arc<ManualClock>,
    token_file: &str,
) -> [(Fake<FakeAwsRoles>, String, Vec<(String, String)>); 4] {
    let lender = async |lends| Fake::start(FakeAwsRoles::new(lends, "CANARY-shown"), clock.truth()).await;
    let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let (machine, container) = (lender(Lends::Instance).await, lender(Lends::Container).await);
    let (of_pod, named) = (lender(Lends::WebIdentity).await, lender(Lends::WebIdentity).await);
    let auth = format!("{{method: instance, endpoint: '{}'}}", machine.url());
    let full = variable("AWS_CONTAINER_CREDENTIALS_FULL_URI", &format!("{}/v1/credentials", container.url()));
    let shown = variable("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token_file);
    let role = variable("AWS_ROLE_ARN", "arn:aws:iam::1:role/worker");
    let file = variable("AWS_WEB_IDENTITY_TOKEN_FILE", token_file);
    let by_variables = format!("{{method: web_identity, endpoint: '{}'}}", of_pod.url());
    let by_fields = format!(
        "{{method: web_identity, role: 'arn:aws:iam::1:role/worker', token: 'env:TOKEN', session: w-1, endpoint: '{}'}}",
        named.url()
    );
    [
        (machine, auth, vec![]),
        (container, "{method: container}".to_owned(), vec![full, shown]),
        (of_pod, by_variables, vec![role, file]),
        (named, by_fields, vec![variable("TOKEN", "CANARY-shown")]),
    ]
}

#[tokio::test]
async fn aws_lends_keys_to_machines_containers_and_pods() {
    let clock = Arc::new(ManualClock::default());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    private(&file, "CANARY-shown\n");
    for (lender, auth, variables) in aws_lenders(&clock, file.to_str().unwrap()).await {
        let fake =
            Fake::start(FakeAws::new("eu-central-1", "ASIA1", "CANARY/1+", Some("CANARY==1")), clock.truth()).await;
        fake.service.put("one", json!({"SecretString": "CANARY-one"}));
        fake.service.put("two", json!({"SecretString": "CANARY-two"}));
        lender.service.lend("ASIA1", "CANARY/1+", "CANARY==1");
        let variables: Vec<(&str, &str)> =
            variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let rig = Rig::new(clock.clone(), &yaml_aws(fake.url(), &auth), &variables);
        assert_eq!(rig.value("aws:main/one").await.unwrap(), "CANARY-one", "{auth}");
        let asked = lender.asked().len();
        assert_eq!(rig.value("aws:main/two").await.unwrap(), "CANARY-two");
        assert_eq!(lender.asked().len(), asked, "keys serve as long as they last: {auth}");

        // Taken back before their time: the same request brings others.
        lender.service.lend("ASIA2", "CANARY/2+", "CANARY==2");
        fake.service.take("ASIA2", "CANARY/2+", Some("CANARY==2"));
        clock.pass(61);
        assert_eq!(rig.value("aws:main/one").await.unwrap(), "CANARY-one", "{auth}");
        let asked = lender.asked().len();
        // A minute before their end others are asked for.
        clock.pass(3600 - 59);
        assert_eq!(rig.value("aws:main/one").await.unwrap(), "CANARY-one", "{auth}");
        assert!(lender.asked().len() > asked, "{auth}");

        lender.fault(Some(Answer::new(503, "CANARY")));
        clock.pass(3600);
        let who = if auth.contains("instance") { "metadata service" } else { "(aws:main)" };
        refused(rig.value("aws:main/one").await, &[who, "does not answer", "status 503"]);
        lender.fault(None);
        clock.pass(10);
        assert_eq!(rig.value("aws:main/one").await.unwrap(), "CANARY-one", "{auth}");
        rig.check();
    }
}

#[tokio::test]
async fn aws_says_why_it_lends_no_keys() {
    let clock = Arc::new(ManualClock::default());
    let fake = Fake::start(FakeAws::new("eu-central-1", "A", "CANARY", None), clock.truth()).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    private(&file, "CANARY-other");
    let file = file.to_str().unwrap();
    let [(machine, of_machine, _), (_kept, container, of_container), (_kept_too, of_pod, _), _] =
        aws_lenders(&clock, file).await;
    let full = of_container[0].1.as_str();
    let no_role = Fake::start(FakeAwsRoles::new(Lends::Instance, "CANARY"), clock.truth()).await;
    let no_role = format!("{{method: instance, endpoint: '{}'}}", no_role.url());
    machine.service.lend("none", "", "");
    let not_trusted = ("AWS_ROLE_ARN", "arn:aws:iam::1:role/worker");
    let refusing = Fake::start(FakeAwsRoles::new(Lends::WebIdentity, "CANARY-other"), clock.truth()).await;
    let refusing = format!("{{method: web_identity, endpoint: '{}', token: 'file:{file}'}}", refusing.url());
    type Case<'a> = (&'a str, Vec<(&'a str, &'a str)>, &'a [&'a str]);
    let jwt = ("AWS_WEB_IDENTITY_TOKEN_FILE", "CANARY.not.a.path");
    let cases: [Case<'_>; 13] = [
        (&no_role, vec![], &["metadata service", "has no role", "instance profile"]),
        (&of_machine, vec![], &["no keys for this machine's role", "trusts EC2"]),
        (&container, vec![], &["AWS_CONTAINER_CREDENTIALS_FULL_URI", "give the task"]),
        (&container, vec![("AWS_CONTAINER_CREDENTIALS_FULL_URI", full)], &["status 403", "role of the task"]),
        (&container, vec![("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "@evil.test/")], &["no path"]),
        // Whoever answers there chooses which secrets are used.
        (&container, vec![("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://10.0.0.1/")], &["neither https nor"]),
        (
            &container,
            vec![("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://localhost.evil.test/")],
            &["neither https nor"],
        ),
        (&of_pod, vec![], &["token service", "no `role`", "AWS_ROLE_ARN"]),
        (&of_pod, vec![not_trusted], &["no `token`", "AWS_WEB_IDENTITY_TOKEN_FILE"]),
        (&of_pod, vec![not_trusted, ("AWS_WEB_IDENTITY_TOKEN_FILE", file)], &["does not take the token", "audience"]),
        // Somebody put the token, or another secret, where a name belongs.
        (&of_pod, vec![not_trusted, jwt], &["AWS_WEB_IDENTITY_TOKEN_FILE", "no absolute path"]),
        (&of_pod, vec![("AWS_ROLE_ARN", "CANARY")], &["no ARN of a role"]),
        (&refusing, vec![("AWS_ROLE_ARN", "arn:aws:iam::1:role/other")], &["role/other", "whom the role trusts"]),
    ];
    for (auth, variables, needles) in cases {
        let rig = Rig::new(clock.clone(), &yaml_aws(fake.url(), auth), &variables);
        refused(rig.value("aws:main/one").await, needles);
        rig.check();
    }
    assert!(fake.asked().is_empty(), "nothing is asked without keys");
}

#[tokio::test]
async fn azure_logs_in_three_ways_and_expired_secrets_are_refused() {
    let clock = Arc::new(ManualClock::default());
    let fake = FakeAzure::new("tenant", "app", "CANARY s&cret=", "CANARY-federated");
    let fake = Fake::start(fake, clock.truth()).await;
    let now = 1_780_000_000;
    fake.service.put("token", "CANARY-1", None);
    fake.service.put("token/0123", "CANARY-0", None);
    fake.service.put("dated", "CANARY-d", Some(now + 30));
    let url = fake.url();
    let variables = [("SECRET", "CANARY s&cret="), ("FEDERATED", "CANARY-federated"), ("WRONG", "CANARY-wrong")];
    let yaml = |auth: &str| format!("azure:\n  kv:\n    address: {url}\n    auth: {auth}\n");
    for auth in [
        format!("{{method: managed_identity, endpoint: '{url}'}}"),
        format!(
            "{{method: federated_token, tenant: tenant, client_id: app, token: 'env:FEDERATED', authority: '{url}'}}"
        ),
        format!("{{method: client_secret, tenant: tenant, client_id: app, secret: 'env:SECRET', authority: '{url}'}}"),
    ] {
        let rig = Rig::new(clock.clone(), &yaml(&auth), &variables);
        assert_eq!(rig.value("azure:kv/token").await.unwrap(), "CANARY-1");
        assert_eq!(rig.value("azure:kv/token/0123").await.unwrap(), "CANARY-0");
        fake.service.forget_tokens();
        refused(rig.value("azure:kv/none").await, &["no secret `none`"]);
        rig.check();
    }
    let wrong =
        format!("{{method: client_secret, tenant: tenant, client_id: app, secret: 'env:WRONG', authority: '{url}'}}");
    let rig = Rig::new(clock.clone(), &yaml(&wrong), &variables);
    refused(rig.value("azure:kv/token").await, &["application's secret in `env:WRONG`", "status 401"]);
    rig.check();

    let auth = format!("{{method: managed_identity, endpoint: '{url}'}}");
    let rig = Rig::new(clock.clone(), &yaml(&auth), &variables);
    assert_eq!(rig.value("azure:kv/dated").await.unwrap(), "CANARY-d");
    clock.pass(31);
    refused(rig.value("azure:kv/dated").await, &["ended at 2026-", "new version"]);
    rig.check();
}

#[tokio::test]
async fn google_verifies_the_statement_and_checksums_are_checked() {
    let clock = Arc::new(ManualClock::default());
    let fake = Fake::start(FakeGoogle::new("p", "agent@p.example"), clock.truth()).await;
    // CRC-32C of the nine digits, from the catalogues.
    fake.service.put("digits/latest", "123456789", "3808858755");
    fake.service.put("damaged/3", "CANARY", "1");
    let url = fake.url();
    let key = |email: &str| {
        json!({"type": "service_account", "client_email": email, "private_key": SERVICE_ACCOUNT_KEY,
            "private_key_id": "k", "token_uri": format!("{url}/token")})
        .to_string()
    };
    let (good, other, plain) =
        (key("agent@p.example"), key("other@p.example"), key("a@b").replace(url, "http://192.0.2.1"));
    let variables =
        [("KEY", good.as_str()), ("OTHER", &other), ("PLAIN", &plain), ("NONE", "{\"private_key\": \"CANARY")];
    let yaml = |auth: &str| format!("google:\n  p:\n    project: p\n    address: {url}\n    auth: {auth}\n");
    let metadata = format!("{{method: metadata, endpoint: '{url}'}}");
    for auth in ["{method: service_account, key: 'env:KEY'}", &metadata] {
        let rig = Rig::new(clock.clone(), &yaml(auth), &variables);
        assert_eq!(rig.value("google:p/digits").await.unwrap(), "123456789");
        refused(rig.value("google:p/none/7").await, &["no `none` with the version `7`"]);
        refused(rig.value("google:p/damaged/3").await, &["checksum"]);
        rig.check();
    }
    for (auth, needles) in [
        ("{method: service_account, key: 'env:OTHER'}", ["service account's key in `env:OTHER`", "status 400"]),
        ("{method: service_account, key: 'env:PLAIN'}", ["token_uri", "use https"]),
        ("{method: service_account, key: 'env:NONE'}", ["`env:NONE` holds no key", "client_email"]),
    ] {
        let rig = Rig::new(clock.clone(), &yaml(auth), &variables);
        refused(rig.value("google:p/digits").await, &needles);
        rig.check();
    }
    let rig = Rig::new(clock.clone(), &yaml("{method: service_account, key: 'env:KEY'}"), &variables);
    clock.skew(7200);
    refused(rig.value("google:p/digits").await, &["clock says", "NTP"]);
    rig.check();
}

#[tokio::test]
async fn onepassword_finds_items_by_name_and_by_id() {
    let clock = Arc::new(ManualClock::default());
    let fake = Fake::start(FakeOnePassword::new("CANARY-connect"), clock.truth()).await;
    let vault = ("vvvvvvvvvvvvvvvvvvvvvvvvvv", "Shared Vault");
    let fields = json!([
        {"id": "username", "label": "username", "value": "u"},
        {"id": "password", "label": "password", "value": "CANARY-p"},
        {"id": "x1", "label": "api key", "value": "CANARY-k"},
        {"id": "notes", "label": "notesPlain"},
    ]);
    fake.service.put(vault, ("aaaaaaaaaaaaaaaaaaaaaaaaaa", "My Item"), fields.clone());
    fake.service.put(vault, ("bbbbbbbbbbbbbbbbbbbbbbbbbb", "Twin"), fields.clone());
    fake.service.put(vault, ("cccccccccccccccccccccccccc", "Twin"), fields);
    let yaml = |origin: &str| format!("onepassword:\n  home:\n    address: {}\n    token: '{origin}'\n", fake.url());
    let variables = [("TOKEN", "CANARY-connect"), ("WRONG", "CANARY-wrong")];
    let rig = Rig::new(clock.clone(), &yaml("env:TOKEN"), &variables);
    assert_eq!(rig.value("onepassword:home/Shared Vault/My Item#password").await.unwrap(), "CANARY-p");
    assert_eq!(rig.value("onepassword:home/Shared Vault/My Item#api key").await.unwrap(), "CANARY-k");
    let by_id = "onepassword:home/vvvvvvvvvvvvvvvvvvvvvvvvvv/cccccccccccccccccccccccccc#username";
    assert_eq!(rig.value(by_id).await.unwrap(), "u");
    refused(rig.value("onepassword:home/Shared Vault/Twin#password").await, &["several", "use the id"]);
    refused(rig.value("onepassword:home/Shared Vault/None#password").await, &["no item `None`"]);
    refused(rig.value("onepassword:home/Other/None#password").await, &["no vault `Other`"]);
    refused(rig.value("onepassword:home/Other#password").await, &["onepassword:SERVER/VAULT/ITEM"]);
    rig.check();
    let rig = Rig::new(clock, &yaml("env:WRONG"), &variables);
    refused(rig.value("onepassword:home/Shared Vault/My Item#password").await, &["token in `env:WRONG`"]);
    rig.check();
}

/// A server that answers every refusal with whatever it was sent, as careless ones do.
#[tokio::test]
async fn a_server_that_repeats_what_it_was_sent_does_not_get_it_into_errors() {
    struct Parrot;
    impl Service for Parrot {
        fn answer(&self, asked: &palisade_testkit::secrets::Asked, _: std::time::SystemTime) -> Answer {
            let said = format!("{:?} {}", asked.headers, String::from_utf8_lossy(&asked.body));
            let body =
                json!({"errors": [said], "error": said, "__type": said, "message": said, "error_description": said});
            Answer::new(400, body.to_string())
        }
    }
    let clock = Arc::new(ManualClock::default());
    let fake = Fake::start(Parrot, clock.truth()).await;
    let url = fake.url();
    let yaml = format!(
        "{}{}azure:\n  kv:\n    address: {url}\n    auth: {{method: client_secret, tenant: t, client_id: c, secret: 'env:S', authority: '{url}'}}\nonepassword:\n  home:\n    address: {url}\n    token: env:S\n",
        yaml_vault(url, "{method: approle, role_id: r, secret_id: 'env:S'}"),
        yaml_aws(url, "{method: keys, access_key_id: A, secret_access_key: 'env:S', session_token: 'env:S'}"),
    );
    let rig = Rig::new(clock, &yaml, &[("S", "CANARY")]);
    for text in ["vault:prod/secret/a#t", "aws:main/a", "azure:kv/a", "onepassword:home/v/i#f"] {
        refused(rig.value(text).await, &["status 400"]);
    }
    rig.check();
}
