//! Credentials that are exchanged for others: an app's key for tokens of its installation, a client's secret for access tokens.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Response, StatusCode, Uri};
use axum::routing::post;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RsaKeyPair, UnparsedPublicKey};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::world::{CANARY, World, credential, has, policy, rule};

/// An API for apps: gives a token for a good assertion, and takes that for its repositories.
struct App {
    key: RsaKeyPair,
    /// What it was asked, and whether it was content.
    asked: Mutex<Vec<(String, bool)>>,
}

fn token() -> String {
    format!("ghs_{CANARY}0123456789012345678901234567")
}

fn bearer(headers: &HeaderMap) -> &str {
    let value = headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.trim_start_matches("Bearer ")
}

impl App {
    fn accepts(&self, assertion: &str) -> bool {
        let Some((signed, signature)) = assertion.rsplit_once('.') else { return false };
        let Ok(signature) = URL_SAFE_NO_PAD.decode(signature) else { return false };
        let public = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, self.key.public().as_ref());
        let claims =
            signed.split('.').nth(1).and_then(|claims| URL_SAFE_NO_PAD.decode(claims).ok()).unwrap_or_default();
        let claims: Value = serde_json::from_slice(&claims).unwrap_or_default();
        public.verify(signed.as_bytes(), &signature).is_ok()
            && claims["iss"] == "1234"
            && claims["exp"].as_u64() > claims["iat"].as_u64()
    }
}

async fn app(State(app): State<Arc<App>>, uri: Uri, headers: HeaderMap) -> Response<Body> {
    let content = match uri.path() {
        "/app/installations/99/access_tokens" => app.accepts(bearer(&headers)),
        _ => bearer(&headers) == token(),
    };
    app.asked.lock().unwrap().push((uri.path().to_owned(), content));
    let answer = if uri.path().ends_with("access_tokens") && content {
        let body = json!({"token": token(), "expires_at": "2126-01-01T00:00:00Z"}).to_string();
        Response::builder().status(StatusCode::CREATED).body(Body::from(body))
    } else if content {
        Response::builder().body(Body::from(format!("seen {}", token())))
    } else {
        Response::builder().status(StatusCode::UNAUTHORIZED).body(Body::empty())
    };
    answer.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_acts_by_tokens_of_its_installation() {
    if !has(&["openssl", "curl"]) {
        return;
    }
    let world = World::new().await;
    let made = std::process::Command::new("openssl").args(["genrsa", "-traditional", "2048"]).output().unwrap();
    let pem = String::from_utf8(made.stdout).unwrap();
    let der: String = pem.lines().filter(|line| !line.starts_with("---")).collect();
    world.secret("app", &pem);
    let key = RsaKeyPair::from_der(&STANDARD.decode(der).unwrap()).unwrap();
    let state = Arc::new(App { key, asked: Mutex::default() });
    let router = Router::new().fallback(app).with_state(state.clone());
    // The worker asks the API itself; the sandbox asks it by its name.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api = listener.local_addr().unwrap();
    let serving = tokio::spawn(axum::serve(listener, router.clone()).into_future());
    let upstream = world.upstream(&["api.hub.test"], router).await;
    let credential = format!(
        "  - auth: {{type: environment_variable, secret_name: GH_TOKEN, secret_value: {{from: 'file:keys/app'}}, networking: \
         {{type: limited, allowed_hosts: [api.hub.test]}}}}\n    use: {{as: github_app, app: 1234, installation: 99, api: 'http://{api}'}}\n"
    );
    let (working, session) = world.begin(&policy(&[rule("hub", "api.hub.test", upstream.port, "")]), &credential);
    let ask = format!("curl -sS -H \"Authorization: Bearer $GH_TOKEN\" https://api.hub.test:{}/repos", upstream.port);
    let shown = world.run(&session, &format!("{ask}; echo; {ask}; echo; echo $GH_TOKEN")).await;
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines[0], format!("seen {}", lines[2]), "what was put in is taken out: {shown}");
    assert!(lines[2].starts_with("ghs_") && !shown.contains(CANARY) && !shown.contains("PRIVATE KEY"), "{shown}");
    // One token does for both.
    let asked: Vec<_> = state.asked.lock().unwrap().clone();
    let (exchange, repos) = (("/app/installations/99/access_tokens".to_owned(), true), ("/repos".to_owned(), true));
    assert_eq!(asked, [exchange, repos.clone(), repos]);
    let record = world.recorded("a request", |record| record["path"] == "/repos").await;
    assert_eq!(record["credentials"], json!(["GH_TOKEN"]), "{record}");
    working.end().await;
    serving.abort();
}

/// What the endpoint and the API were told.
type Told = Arc<Mutex<Vec<String>>>;

async fn exchange(State(told): State<Told>, body: Bytes) -> Response<Body> {
    told.lock().unwrap().push(String::from_utf8_lossy(&body).into_owned());
    let tokens = json!({
        "access_token": format!("{CANARY}-access-token-1"), "token_type": "Bearer", "expires_in": 3600,
        "refresh_token": format!("{CANARY}-refresh-token-1"),
    });
    Response::builder().header("content-type", "application/json").body(Body::from(tokens.to_string())).unwrap()
}

async fn told(State(told): State<Told>, headers: HeaderMap) -> String {
    told.lock().unwrap().push(bearer(&headers).to_owned());
    "fine".to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_are_exchanged_stay_outside() {
    if !has(&["curl", "python3"]) {
        return;
    }
    let world = World::new().await;
    world.secret("client", &format!("{CANARY}-client-secret"));
    let seen = Told::default();
    let auth = Router::new().route("/oauth/token", post(exchange)).with_state(seen.clone());
    let auth = world.upstream(&["auth.test"], auth).await;
    let api = world.upstream(&["api.test", "other.test"], Router::new().fallback(told).with_state(seen.clone())).await;
    let credential = "  - auth: {type: environment_variable, secret_name: CLIENT_SECRET, secret_value: {from: 'file:keys/client'}, \
                      networking: {type: limited, allowed_hosts: [auth.test]}}\n    use: {exchange: {path: /oauth/token, \
                      allowed_hosts: [api.test], injection_location: {header: true}}}\n";
    let rules = [
        rule("auth", "auth.test", auth.port, ""),
        rule("api", "api.test", api.port, ""),
        rule("other", "other.test", api.port, ", intercept: true"),
    ];
    let (working, session) = world.begin(&policy(&rules), credential);
    let script = format!(
        "set -e; grant() {{ curl -sS https://auth.test:{auth}/oauth/token \"$@\"; }}\n\
         read_json() {{ python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' $1; }}\n\
         grant -d grant_type=client_credentials -d client_secret=$CLIENT_SECRET > one.json\n\
         access=$(read_json access_token < one.json); refresh=$(read_json refresh_token < one.json)\n\
         curl -sS -H \"Authorization: Bearer $access\" https://api.test:{api}/; echo\n\
         grant -d grant_type=refresh_token -d refresh_token=$refresh > two.json\n\
         curl -sS -o refused.json -w '%{{http_code}}\\n' -H \"Authorization: Bearer $access\" https://other.test:{api}/\n\
         cat one.json two.json",
        auth = auth.port,
        api = api.port,
    );
    let shown = world.run(&session, &format!("({script})")).await;
    assert!(shown.starts_with("fine\n403\n") && !shown.contains(CANARY), "{shown}");
    assert_eq!(
        *seen.lock().unwrap(),
        [
            format!("grant_type=client_credentials&client_secret={CANARY}-client-secret"),
            format!("{CANARY}-access-token-1"),
            format!("grant_type=refresh_token&refresh_token={CANARY}-refresh-token-1"),
        ]
    );
    world
        .recorded("an alert", |record| record["alert"] == true && record["to"] == format!("other.test:{}", api.port))
        .await;
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_is_known_by_its_own_authority() {
    if !has(&["curl"]) {
        return;
    }
    let mut world = World::new().await;
    // The version 2 of its engine for keys and values: enough of it for one secret.
    let vault = Router::new().fallback(async |uri: Uri, headers: HeaderMap| {
        assert_eq!(headers["x-vault-token"], "hvs.root");
        let data = match uri.path() {
            "/v1/auth/token/lookup-self" => json!({"ttl": 0, "renewable": false}),
            "/v1/secret/data/one" => {
                json!({"data": {"token": format!("{CANARY}-from-the-vault")}, "metadata": {"version": 1}})
            }
            other => panic!("{other}"),
        };
        json!({"data": data}).to_string()
    });
    let vault = world.upstream(&["localhost"], vault).await;
    let seen = Told::default();
    let api = world.upstream(&["api.test"], Router::new().fallback(told).with_state(seen.clone())).await;
    world.variable("HVS", "hvs.root");
    let known = world.own.path().join("upstream.pem").display().to_string();
    let source = |ca: &str| {
        let at = format!("address: 'https://localhost:{}', mounts: {{secret: kv}}{ca}", vault.port);
        format!("{{{at}, auth: {{method: token, token: 'env:HVS'}}}}")
    };
    let (known, unknown) = (source(&format!(", ca_file: {known}")), source(""));
    world.source(&format!("vault: {{known: {known}, unknown: {unknown}}}"));
    let credentials = credential("GOOD", "vault:known/secret/one#token", "api.test")
        + &credential("BAD", "vault:unknown/secret/one#token", "api.test");
    let (working, session) = world.begin(&policy(&[rule("api", "api.test", api.port, "")]), &credentials);
    let ask = |variable: &str| {
        format!(
            "curl -sS -w '\\n%{{http_code}}' -H \"Authorization: Bearer ${variable}\" https://api.test:{}/",
            api.port
        )
    };
    assert_eq!(world.run(&session, &ask("GOOD")).await, "fine\n200");
    let shown = world.run(&session, &ask("BAD")).await;
    assert!(shown.contains("credential_unavailable") && shown.ends_with("503"), "{shown}");
    assert_eq!(*seen.lock().unwrap(), [format!("{CANARY}-from-the-vault")]);
    working.end().await;
}
