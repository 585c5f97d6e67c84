//! 1Password Connect.

use std::sync::Mutex;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::{Answer, Asked, Service, lock};

/// One server with one access token.
#[derive(Debug)]
pub struct FakeOnePassword {
    token: String,
    items: Mutex<Vec<Item>>,
}

#[derive(Debug)]
struct Item {
    vault: (String, String),
    id: String,
    title: String,
    fields: Value,
}

impl FakeOnePassword {
    /// With one token.
    pub fn new(token: &str) -> Self {
        Self { token: token.to_owned(), items: Mutex::default() }
    }

    /// Keeps an item. Ids are 26 lower-case letters and digits.
    pub fn put(&self, vault: (&str, &str), item: (&str, &str), fields: Value) {
        lock(&self.items).push(Item {
            vault: (vault.0.to_owned(), vault.1.to_owned()),
            id: item.0.to_owned(),
            title: item.1.to_owned(),
            fields,
        });
    }
}

fn error(status: u16, message: &str) -> Answer {
    Answer::json(status, &json!({"status": status, "message": message}))
}

impl Service for FakeOnePassword {
    fn answer(&self, asked: &Asked, _now: SystemTime) -> Answer {
        if asked.bearer() != self.token {
            return error(401, "Invalid token signature");
        }
        let items = lock(&self.items);
        let filter = Asked::field(&asked.query, "filter");
        let wanted = |attribute: &str| {
            filter
                .strip_prefix(&format!("{attribute} eq \""))
                .and_then(|rest| rest.strip_suffix('"'))
                .map(str::to_owned)
        };
        let parts: Vec<&str> = asked.path.trim_start_matches("/v1/").split('/').collect();
        match parts[..] {
            ["vaults"] => {
                let mut found: Vec<&(String, String)> = items
                    .iter()
                    .map(|item| &item.vault)
                    .filter(|vault| wanted("name").is_none_or(|name| vault.1 == name))
                    .collect();
                found.sort();
                found.dedup();
                Answer::json(200, &found.iter().map(|vault| json!({"id": vault.0, "name": vault.1})).collect())
            }
            ["vaults", vault, "items"] => {
                let found = items
                    .iter()
                    .filter(|item| item.vault.0 == vault && wanted("title").is_none_or(|title| item.title == title))
                    .map(|item| json!({"id": item.id, "title": item.title, "vault": {"id": vault}}));
                Answer::json(200, &found.collect())
            }
            ["vaults", vault, "items", id] => match items.iter().find(|item| item.vault.0 == vault && item.id == id) {
                Some(item) => {
                    let body = json!({"id": id, "title": item.title, "version": 1, "category": "LOGIN", "fields": item.fields});
                    Answer::json(200, &body)
                }
                None => error(404, "Item not found"),
            },
            _ => error(404, "Not found"),
        }
    }
}
