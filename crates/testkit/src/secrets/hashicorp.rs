//! HashiCorp Vault and OpenBao: KV version 2, dynamic secrets, leases, tokens, and four ways of logging in.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use axum::http::Method;
use serde_json::{Value, json};

use super::{Answer, Asked, Service, lock};

/// A server with nothing in it.
#[derive(Debug, Default)]
pub struct FakeHashicorp {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    kv: BTreeMap<String, Vec<Version>>,
    roles: BTreeMap<String, Role>,
    logins: BTreeMap<String, (Value, Duration)>,
    tokens: BTreeMap<String, Token>,
    leases: BTreeMap<String, Lease>,
    denied: BTreeSet<String>,
    sealed: bool,
    made: u64,
}

#[derive(Debug)]
struct Version {
    data: Value,
    deleted: bool,
}

#[derive(Debug, Clone, Copy)]
struct Role {
    lasts: Duration,
    most: Duration,
}

#[derive(Debug)]
struct Token {
    lasts: Duration,
    ends: Option<SystemTime>,
}

#[derive(Debug)]
struct Lease {
    token: String,
    ends: SystemTime,
    latest: SystemTime,
    lasts: Duration,
}

impl FakeHashicorp {
    /// Writes a new version of a KV secret; `path` is `MOUNT/PATH`.
    pub fn write(&self, path: &str, data: Value) {
        lock(&self.state).kv.entry(path.to_owned()).or_default().push(Version { data, deleted: false });
    }

    /// Deletes the newest version.
    pub fn delete(&self, path: &str) {
        if let Some(version) = lock(&self.state).kv.get_mut(path).and_then(|all| all.last_mut()) {
            version.deleted = true;
        }
    }

    /// Makes a dynamic role at a path such as `database/creds/readonly`.
    pub fn role(&self, path: &str, lasts: Duration, most: Duration) {
        lock(&self.state).roles.insert(path.to_owned(), Role { lasts, most });
    }

    /// Lets those in who post exactly this to `auth/MOUNT/login`.
    pub fn login(&self, mount: &str, content: Value, lasts: Duration) {
        lock(&self.state).logins.insert(mount.to_owned(), (content, lasts));
    }

    /// Makes a token that does not end.
    pub fn token(&self, token: &str) {
        lock(&self.state).tokens.insert(token.to_owned(), Token { lasts: Duration::ZERO, ends: None });
    }

    /// Forgets all tokens, and with them all leases.
    pub fn forget_tokens(&self) {
        let mut state = lock(&self.state);
        state.tokens.clear();
        state.leases.clear();
    }

    /// Denies a path to everybody.
    pub fn deny(&self, path: &str) {
        lock(&self.state).denied.insert(path.to_owned());
    }

    /// Seals or unseals it.
    pub fn seal(&self, sealed: bool) {
        lock(&self.state).sealed = sealed;
    }

    /// Revokes all leases, as an operator would.
    pub fn revoke_all(&self) {
        lock(&self.state).leases.clear();
    }

    /// The leases that hold.
    pub fn leases(&self) -> Vec<String> {
        lock(&self.state).leases.keys().cloned().collect()
    }

    /// The tokens that hold.
    pub fn tokens(&self) -> usize {
        lock(&self.state).tokens.len()
    }
}

fn errors(status: u16, texts: &[&str]) -> Answer {
    Answer::json(status, &json!({ "errors": texts }))
}

impl State {
    fn expire(&mut self, now: SystemTime) {
        self.tokens.retain(|_, token| token.ends.is_none_or(|ends| now < ends));
        let tokens = &self.tokens;
        self.leases.retain(|_, lease| now < lease.ends && tokens.contains_key(&lease.token));
    }

    fn authorized(&mut self, asked: &Asked, path: &str, now: SystemTime) -> Answer {
        let token = asked.header("x-vault-token").to_owned();
        if !self.tokens.contains_key(&token) || self.denied.contains(path) {
            return errors(403, &["permission denied"]);
        }
        let body = asked.json();
        let lease_id = body["lease_id"].as_str().unwrap_or_default();
        match (asked.method.as_str(), path) {
            ("GET", "auth/token/lookup-self") => {
                let known = &self.tokens[&token];
                let ttl = known.ends.map_or(0, |ends| ends.duration_since(now).unwrap_or_default().as_secs());
                let data = json!({"id": token, "ttl": ttl, "renewable": known.ends.is_some(), "policies": ["default"]});
                Answer::json(200, &json!({ "data": data }))
            }
            ("PUT" | "POST", "auth/token/renew-self") => {
                let Some(known) = self.tokens.get_mut(&token).filter(|known| known.ends.is_some()) else {
                    return errors(400, &["lease is not renewable"]);
                };
                known.ends = Some(now + known.lasts);
                let auth = json!({"client_token": token, "lease_duration": known.lasts.as_secs(), "renewable": true});
                Answer::json(200, &json!({ "auth": auth }))
            }
            ("PUT" | "POST", "auth/token/revoke-self") => {
                self.tokens.remove(&token);
                self.expire(now);
                Answer::new(204, "")
            }
            ("PUT" | "POST", "sys/leases/renew") => {
                let Some(lease) = self.leases.get_mut(lease_id) else { return errors(400, &["lease not found"]) };
                let asked_for = Duration::from_secs(body["increment"].as_u64().unwrap_or(0));
                let wanted = if asked_for.is_zero() { lease.lasts } else { asked_for };
                lease.ends = (now + wanted).min(lease.latest);
                let lasts = lease.ends.duration_since(now).unwrap_or_default().as_secs();
                Answer::json(200, &json!({"lease_id": lease_id, "renewable": true, "lease_duration": lasts}))
            }
            ("PUT" | "POST", "sys/leases/revoke") => {
                self.leases.remove(lease_id);
                Answer::new(204, "")
            }
            ("GET", path) => self.read(path, &token, now),
            _ => errors(405, &["unsupported operation"]),
        }
    }

    fn read(&mut self, path: &str, token: &str, now: SystemTime) -> Answer {
        if let Some(role) = self.roles.get(path).copied() {
            self.made += 1;
            let id = format!("{path}/lease{:016}", self.made);
            let (ends, latest) = (now + role.lasts, now + role.most);
            self.leases.insert(id.clone(), Lease { token: token.to_owned(), ends, latest, lasts: role.lasts });
            let data = json!({"username": format!("user-{}", self.made), "password": format!("CANARY-password-{}", self.made)});
            let lasts = role.lasts.as_secs();
            let answer = json!({"request_id": "r", "lease_id": id, "renewable": true, "lease_duration": lasts, "data": data, "auth": null});
            return Answer::json(200, &answer);
        }
        let name = path.replacen("/data/", "/", 1);
        let Some(versions) = self.kv.get(&name).filter(|_| path.contains("/data/")) else { return errors(404, &[]) };
        let number = versions.len();
        let Some(newest) = versions.last() else { return errors(404, &[]) };
        let deletion = if newest.deleted { "2026-01-01T00:00:00Z" } else { "" };
        let metadata = json!({"created_time": "2026-01-01T00:00:00Z", "deletion_time": deletion, "destroyed": false, "version": number});
        let data = if newest.deleted { Value::Null } else { newest.data.clone() };
        let answer = json!({"request_id": "r", "lease_id": "", "renewable": false, "lease_duration": 0,
            "data": {"data": data, "metadata": metadata}, "auth": null});
        Answer::json(if newest.deleted { 404 } else { 200 }, &answer)
    }
}

impl Service for FakeHashicorp {
    fn answer(&self, asked: &Asked, now: SystemTime) -> Answer {
        let mut state = lock(&self.state);
        if state.sealed {
            return errors(503, &["Vault is sealed"]);
        }
        state.expire(now);
        let Some(path) = asked.path.strip_prefix("/v1/") else { return errors(404, &[]) };
        let path = percent_encoding::percent_decode_str(path).decode_utf8_lossy().into_owned();
        let login = path.strip_prefix("auth/").and_then(|rest| rest.strip_suffix("/login"));
        let Some(mount) = login.filter(|_| asked.method == Method::POST) else {
            return state.authorized(asked, &path, now);
        };
        let Some((wanted, lasts)) = state.logins.get(mount).cloned() else {
            return errors(404, &["no handler for route"]);
        };
        if asked.json() != wanted {
            return if mount == "approle" {
                errors(400, &["invalid role or secret ID"])
            } else {
                errors(403, &["permission denied"])
            };
        }
        state.made += 1;
        let token = format!("hvs.CANARY-token-{}", state.made);
        state.tokens.insert(token.clone(), Token { lasts, ends: Some(now + lasts) });
        let auth = json!({"client_token": token, "accessor": "a", "policies": ["default"], "lease_duration": lasts.as_secs(), "renewable": true});
        Answer::json(200, &json!({"request_id": "r", "auth": auth}))
    }
}
