//! AWS Secrets Manager, which checks the signature of each request.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use ring::{digest, hmac};
use serde_json::{Value, json};

use super::{Answer, Asked, Service, lock};

/// One account in one region.
#[derive(Debug)]
pub struct FakeAws {
    region: String,
    identity: Mutex<Identity>,
    secrets: Mutex<BTreeMap<String, Value>>,
}

/// Whose requests are taken.
#[derive(Debug)]
struct Identity {
    key_id: String,
    key: String,
    session: Option<String>,
}

impl Identity {
    fn new(key_id: &str, key: &str, session: Option<&str>) -> Self {
        Self { key_id: key_id.to_owned(), key: key.to_owned(), session: session.map(str::to_owned) }
    }
}

impl FakeAws {
    /// With one identity, and a session token if its keys end.
    pub fn new(region: &str, key_id: &str, key: &str, session: Option<&str>) -> Self {
        let identity = Mutex::new(Identity::new(key_id, key, session));
        Self { region: region.to_owned(), identity, secrets: Mutex::default() }
    }

    /// Takes other keys from now on, and the former ones no more.
    pub fn take(&self, key_id: &str, key: &str, session: Option<&str>) {
        *lock(&self.identity) = Identity::new(key_id, key, session);
    }

    /// Keeps a secret; `value` has `SecretString` or `SecretBinary`.
    pub fn put(&self, name: &str, value: Value) {
        lock(&self.secrets).insert(name.to_owned(), value);
    }

    /// Checks the signature from what arrived, by the documented steps. The error is the type that AWS would answer.
    fn check(&self, asked: &Asked, now: SystemTime) -> Result<(), &'static str> {
        let identity = lock(&self.identity);
        let authorization = asked.header("authorization");
        let rest = authorization.strip_prefix("AWS4-HMAC-SHA256 ").ok_or("MissingAuthenticationTokenException")?;
        let part = |name: &str| {
            rest.split(", ").find_map(|part| part.strip_prefix(name)).ok_or("IncompleteSignatureException")
        };
        let (credential, signed, signature) = (part("Credential=")?, part("SignedHeaders=")?, part("Signature=")?);
        let time = asked.header("x-amz-date");
        let scope: Vec<&str> = credential.split('/').collect();
        let [id, date, region, service, "aws4_request"] = scope[..] else { return Err("IncompleteSignatureException") };
        if id != identity.key_id {
            return Err("UnrecognizedClientException");
        }
        if region != self.region || service != "secretsmanager" || !time.starts_with(date) {
            return Err("InvalidSignatureException");
        }
        let names: Vec<&str> = signed.split(';').collect();
        // AWS demands these, and every x-amz- header that is sent.
        let demanded = asked.headers.keys().map(|name| name.as_str()).filter(|name| name.starts_with("x-amz-"));
        if !["host", "x-amz-date"].into_iter().chain(demanded).all(|name| names.contains(&name)) || !names.is_sorted() {
            return Err("InvalidSignatureException");
        }
        let mut canonical = format!("{}\n{}\n{}\n", asked.method, asked.path, asked.query);
        for name in &names {
            let _ = writeln!(canonical, "{name}:{}", asked.header(name).trim());
        }
        let _ = write!(canonical, "\n{signed}\n{}", hex(digest::digest(&digest::SHA256, &asked.body).as_ref()));
        let to_sign = format!(
            "AWS4-HMAC-SHA256\n{time}\n{date}/{region}/{service}/aws4_request\n{}",
            hex(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref())
        );
        let mac = |key: &[u8], text: &str| {
            hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
        };
        let key = [date, region, service, "aws4_request"]
            .iter()
            .fold(format!("AWS4{}", identity.key).into_bytes(), |key, text| mac(&key, text));
        if hex(&mac(&key, &to_sign)) != signature {
            return Err("InvalidSignatureException");
        }
        let sent = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", time)
            .and_then(|time| time.to_zoned(jiff::tz::TimeZone::UTC))
            .map_err(|_| "IncompleteSignatureException")?;
        let sent = SystemTime::from(sent.timestamp());
        let apart = now.duration_since(sent).or_else(|_| sent.duration_since(now)).unwrap_or_default();
        if apart > Duration::from_secs(300) {
            return Err("InvalidSignatureException");
        }
        if asked.header("x-amz-security-token") != identity.session.as_deref().unwrap_or_default() {
            return Err("ExpiredTokenException");
        }
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn refuse(kind: &str) -> Answer {
    Answer::json(400, &json!({"__type": kind, "Message": "asked for by the test"}))
}

impl Service for FakeAws {
    fn answer(&self, asked: &Asked, now: SystemTime) -> Answer {
        if asked.header("x-amz-target") != "secretsmanager.GetSecretValue"
            || asked.header("content-type") != "application/x-amz-json-1.1"
        {
            return refuse("UnknownOperationException");
        }
        if let Err(kind) = self.check(asked, now) {
            return refuse(kind);
        }
        let body = asked.json();
        let name = body["SecretId"].as_str().unwrap_or_default();
        match lock(&self.secrets).get(name) {
            Some(value) if body["VersionStage"] == "AWSCURRENT" => {
                let mut answer = json!({"ARN": "arn:aws:secretsmanager:x:1:secret:x", "Name": name, "VersionId": "v", "VersionStages": ["AWSCURRENT"], "CreatedDate": 1.5e9});
                for (member, value) in value.as_object().into_iter().flatten() {
                    answer[member] = value.clone();
                }
                Answer::json(200, &answer)
            }
            _ => refuse("ResourceNotFoundException"),
        }
    }
}
