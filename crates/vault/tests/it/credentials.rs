//! Credentials as the API's vaults have them.

use palisade_vault::{Auth, Credential, CredentialFile, InjectionLocation, Networking, Provenance, Value};
use serde_json::{Value as Json, json};

use crate::rig::CANARY;

fn variable() -> Json {
    json!({"auth": {"type": "environment_variable", "secret_name": "GITHUB_TOKEN",
        "secret_value": {"from": "vault:prod/secret/github#token"},
        "networking": {"type": "limited", "allowed_hosts": ["API.GitHub.com", "*.githubusercontent.com", "192.0.2.7"]}}})
}

fn file(credentials: &[Json]) -> String {
    json!({ "credentials": credentials }).to_string()
}

#[test]
fn a_file_names_where_its_secrets_are() {
    let text = "
credentials:
  - display_name: GitHub
    auth:
      type: environment_variable
      secret_name: GITHUB_TOKEN
      secret_value: {from: 'sealed:github'}
      networking: {type: limited, allowed_hosts: [api.github.com, '*.github.com', 192.0.2.7]}
      injection_location: {header: true}
  - auth: {type: static_bearer, mcp_server_url: 'HTTPS://MCP.Example:443/path/', token: {from: 'env:MCP'}}
  - auth:
      type: mcp_oauth
      mcp_server_url: https://oauth.example
      access_token: {from: 'sealed:access'}
      expires_at: '2026-11-01T08:00:00Z'
      refresh:
        client_id: c
        refresh_token: {from: 'sealed:refresh'}
        token_endpoint: https://oauth.example/token
        token_endpoint_auth: {type: client_secret_post, client_secret: {from: 'sealed:client'}}
        scope: null
";
    let file = CredentialFile::parse(text).unwrap();
    let Auth::EnvironmentVariable { secret_value, networking, injection_location, .. } = &file.credentials[0].auth
    else {
        panic!("the first is a variable")
    };
    assert!(matches!(secret_value, Value::From(reference) if reference.to_string() == "sealed:github"));
    assert_eq!(*injection_location, InjectionLocation { header: true, body: false });
    let Networking::Limited { allowed_hosts } = networking else { panic!("it is limited") };
    for (host, matches) in [
        ("api.github.com", true),
        ("uploads.github.com", true),
        ("a.b.github.com", true),
        ("github.com", false),
        ("evilgithub.com", false),
        ("api.github.com.evil.example", false),
        ("192.0.2.7", true),
        ("192.0.2.70", false),
    ] {
        assert_eq!(allowed_hosts.iter().any(|allowed| allowed.matches(host)), matches, "{host}");
    }
    assert_eq!(file.credentials[1].key(), ("mcp_server_url", "https://mcp.example/path"));
    let references: Vec<String> = file.credentials[2].references().into_iter().map(ToString::to_string).collect();
    assert_eq!(references, ["sealed:access", "sealed:refresh", "sealed:client"]);
}

#[test]
fn what_came_from_the_api_holds_its_secrets_and_shows_none() {
    let mut json = variable();
    json["auth"]["secret_value"] = json!("CANARY-v");
    let credential = Credential::from_json(&json.to_string(), Provenance::Api).unwrap();
    let Auth::EnvironmentVariable { secret_value: Value::Given(secret), injection_location, .. } = &credential.auth
    else {
        panic!("the value is given")
    };
    assert_eq!(secret.expose(), "CANARY-v");
    assert_eq!(*injection_location, InjectionLocation { header: true, body: true });
    assert!(!format!("{credential:?}").contains(CANARY));
}

#[test]
fn every_rule_names_its_field_and_repeats_no_value() {
    let hosts = |hosts: Json| ("/auth/networking/allowed_hosts", hosts);
    let cases = [
        ("/auth/secret_value", json!("CANARY"), "auth.secret_value", "a file holds no secrets"),
        ("/auth/secret_value", json!({"from": "CANARY"}), "auth.secret_value.from", "never the secret itself"),
        ("/auth/secret_value", json!({"CANARY": "x"}), "auth.secret_value", "unknown field"),
        ("/auth/secret_value", json!(null), "auth.secret_value", "not be null"),
        ("/auth/secret_name", json!("1A"), "auth.secret_name", "name of a variable"),
        ("/auth/secret_name", json!("A=B"), "auth.secret_name", "name of a variable"),
        ("/auth/type", json!("CANARY"), "auth.type", "must be `environment_variable`"),
        ("/auth/injection_location", json!(null), "auth.injection_location", "null"),
        ("/auth/injection_location", json!({"header": null, "body": true}), "auth.injection_location.header", "null"),
        ("/auth/injection_location", json!({"header": false, "body": false}), "auth.injection_location", "no location"),
        ("/auth/injection_location", json!({}), "auth.injection_location", "no location"),
        ("/auth/injection_location", json!({"query": true}), "auth.injection_location", "`query`"),
        (
            "/auth/networking",
            json!({"type": "unrestricted", "allowed_hosts": []}),
            "auth.networking",
            "`allowed_hosts`",
        ),
        ("/auth/networking", json!({"type": "limited"}), "auth.networking.allowed_hosts", "missing"),
        ("/auth/networking/type", json!("open"), "auth.networking.type", "`unrestricted` or `limited`"),
        ("/display_name", json!("x".repeat(256)), "display_name", "255"),
        ("/metadata", json!({"a": 1}), "metadata", "strings"),
    ];
    let more = [
        hosts(json!([])),
        hosts(json!(vec!["a.example"; 17])),
        hosts(json!(["https://a.example"])),
        hosts(json!(["a.example/path"])),
        hosts(json!(["a.example:443"])),
        hosts(json!(["user@a.example"])),
        hosts(json!(["::1"])),
        hosts(json!(["[::1]"])),
        hosts(json!(["*"])),
        hosts(json!(["*.*.example"])),
        hosts(json!(["a.*.example"])),
        hosts(json!(["a*.example"])),
        hosts(json!(["a..example"])),
        hosts(json!(["-a.example"])),
        hosts(json!(["a b.example"])),
        hosts(json!(["ä.example"])),
        hosts(json!(["127.1"])),
        hosts(json!(["0x7f.0x1"])),
        hosts(json!([1])),
        hosts(json!([""])),
    ];
    let more = more.into_iter().map(|(at, value)| (at, value, "auth.networking.allowed_hosts", ""));
    for (at, value, field, why) in cases.into_iter().chain(more) {
        let mut json = variable();
        let (parent, member) = at.rsplit_once('/').unwrap();
        json.pointer_mut(parent).unwrap()[member] = value.clone();
        let error = CredentialFile::parse(&file(&[json])).expect_err(&format!("{at} {value}"));
        assert!(error.field.starts_with(&format!("credentials[0].{field}")), "{error}");
        assert!(error.why.contains(why), "{error}");
        assert!(!format!("{error} {error:?}").contains(CANARY), "{error}");
    }
    let error = CredentialFile::parse(&file(&[variable(), variable()])).unwrap_err();
    assert_eq!(error.field, "credentials[1].auth.secret_name");
    let many: Vec<Json> = (0..21)
        .map(|number| {
            let mut json = variable();
            json["auth"]["secret_name"] = json!(format!("V{number}"));
            json
        })
        .collect();
    assert_eq!(CredentialFile::parse(&file(&many)).unwrap_err().field, "credentials");
    assert!(CredentialFile::parse(&file(&many[..20])).is_ok());
    for text in ["{\"credentials\": [CANARY", "- CANARY", "credentials: CANARY", "\"CANARY\"", "a: &a [*a]"] {
        let error = CredentialFile::parse(text).unwrap_err();
        assert!(!format!("{error} {error:?}").contains(CANARY), "{error}");
    }
    let twice = file(&[variable()]).replacen("\"networking\"", "\"secret_name\": \"OTHER\", \"networking\"", 1);
    for text in [&twice, &format!("# YAML\n{twice}")] {
        assert!(CredentialFile::parse(text).unwrap_err().why.contains("twice"));
    }
}
