//! Azure: the login service, a machine's own identity, and a key vault, at one address.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::{Answer, Asked, Service, lock, unix};

/// One directory, one application, one vault.
#[derive(Debug)]
pub struct FakeAzure {
    tenant: String,
    client_id: String,
    /// What is taken as the application's secret.
    secret: String,
    /// What is taken as a federated token.
    federated: String,
    secrets: Mutex<BTreeMap<String, Value>>,
    tokens: Mutex<BTreeSet<String>>,
    made: Mutex<u64>,
}

impl FakeAzure {
    /// With one application.
    pub fn new(tenant: &str, client_id: &str, secret: &str, federated: &str) -> Self {
        Self {
            tenant: tenant.to_owned(),
            client_id: client_id.to_owned(),
            secret: secret.to_owned(),
            federated: federated.to_owned(),
            secrets: Mutex::default(),
            tokens: Mutex::default(),
            made: Mutex::default(),
        }
    }

    /// Keeps a secret; `name` is `NAME` or `NAME/VERSION`, `expires` seconds since the epoch.
    pub fn put(&self, name: &str, value: &str, expires: Option<u64>) {
        lock(&self.secrets)
            .insert(name.to_owned(), json!({"value": value, "attributes": {"enabled": true, "exp": expires}}));
    }

    /// Forgets the tokens that it gave.
    pub fn forget_tokens(&self) {
        lock(&self.tokens).clear();
    }

    fn token(&self) -> String {
        let mut made = lock(&self.made);
        *made += 1;
        let token = format!("CANARY-azure-token-{made}");
        lock(&self.tokens).insert(token.clone());
        token
    }

    fn log_in(&self, asked: &Asked) -> Answer {
        let body = String::from_utf8_lossy(&asked.body).into_owned();
        let field = |name: &str| Asked::field(&body, name);
        let refuse = |status, error: &str| Answer::json(status, &json!({"error": error, "error_description": body}));
        if field("grant_type") != "client_credentials" || field("scope") != "https://vault.azure.net/.default" {
            return refuse(400, "invalid_request");
        }
        let secret = field("client_secret") == self.secret;
        let federated = field("client_assertion") == self.federated
            && field("client_assertion_type") == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
        if field("client_id") != self.client_id || !(secret || federated) {
            return refuse(401, "invalid_client");
        }
        Answer::json(200, &json!({"token_type": "Bearer", "expires_in": 3599, "access_token": self.token()}))
    }
}

impl Service for FakeAzure {
    fn answer(&self, asked: &Asked, now: SystemTime) -> Answer {
        if asked.path == format!("/{}/oauth2/v2.0/token", self.tenant) {
            return self.log_in(asked);
        }
        if asked.path == "/metadata/identity/oauth2/token" {
            if asked.header("metadata") != "true" || Asked::field(&asked.query, "resource") != "https://vault.azure.net"
            {
                return Answer::json(400, &json!({"error": "invalid_request"}));
            }
            let ends = (unix(now) + 3599).to_string();
            let token =
                json!({"access_token": self.token(), "expires_in": "3599", "expires_on": ends, "token_type": "Bearer"});
            return Answer::json(200, &token);
        }
        let error = |status, code: &str| Answer::json(status, &json!({"error": {"code": code, "message": "m"}}));
        if !lock(&self.tokens).contains(asked.bearer()) {
            return error(401, "Unauthorized");
        }
        if !asked.query.starts_with("api-version=7.") {
            return error(400, "BadParameter");
        }
        let secrets = lock(&self.secrets);
        match asked.path.strip_prefix("/secrets/").and_then(|name| secrets.get(name)) {
            Some(value) => Answer::json(200, value),
            None => error(404, "SecretNotFound"),
        }
    }
}
