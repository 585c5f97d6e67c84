//! 1Password Connect: a server of one's own in front of 1Password.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use palisade_api::Secret;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::FetchError;
use crate::http::{Call, Client, encode, secret_header};
use crate::source::{Content, Document, Source, Stamp};
use crate::surroundings::{Origin, Surroundings};

/// One server under `onepassword:`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnePasswordConfig {
    /// Such as `https://connect.internal:8080`.
    pub address: String,
    /// Certificates in PEM that are trusted besides the machine's own.
    pub ca_file: Option<PathBuf>,
    /// Where the access token is.
    pub token: Origin,
    /// Seconds that a value is used before it is asked for again; 60 by default.
    pub keep: Option<u64>,
}

#[derive(Debug)]
pub(crate) struct OnePassword {
    name: String,
    config: OnePasswordConfig,
    client: Client,
    surroundings: Surroundings,
}

#[derive(Deserialize)]
struct Named {
    id: String,
}

#[derive(Deserialize)]
struct Item {
    #[serde(default)]
    version: u64,
    #[serde(default)]
    fields: Vec<Field>,
}

#[derive(Deserialize)]
struct Field {
    #[serde(default)]
    id: String,
    #[serde(default)]
    label: Option<String>,
    #[serde(default)]
    value: Option<Secret>,
}

impl OnePassword {
    pub(crate) fn new(name: &str, config: OnePasswordConfig, client: Client, surroundings: Surroundings) -> Self {
        Self { name: name.to_owned(), config, client, surroundings }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str, what: &str) -> Result<T, FetchError> {
        let place = self.client.place();
        // Read each time: somebody may have put a new one there.
        let token = self.config.token.load(&self.surroundings).await.map_err(|why| FetchError::local(place, why))?;
        let header = secret_header("Bearer ", &token).ok_or_else(|| {
            FetchError::local(place, format!("`{}` holds no token: it has characters that none has", self.config.token))
        })?;
        let mut call = Call::get(format!("{}/v1/{path}", self.config.address.trim_end_matches('/')));
        call.headers.insert(reqwest::header::AUTHORIZATION, header);
        let answer = self.client.call(call).await?;
        match answer.status {
            200 => self.client.parse(&answer.body),
            401 => Err(FetchError::denied(
                place,
                format!("it does not take the token in `{}`; make a new one for this server", self.config.token),
            )),
            403 => {
                Err(FetchError::denied(place, format!("the token may not read {what}; give it access to that vault")))
            }
            404 => Err(FetchError::not_found(place, format!("there is no {what}"))),
            status => Err(self.client.status(status)),
        }
    }

    /// The id of what is called this, which must be one thing.
    async fn id(&self, path: &str, attribute: &str, name: &str, what: &str) -> Result<String, FetchError> {
        if is_id(name) {
            return Ok(name.to_owned());
        }
        if name.contains(['"', '\\']) {
            let why = format!("the name of {what} holds a quote or a backslash; use its id");
            return Err(FetchError::not_found(self.client.place(), why));
        }
        let filter = encode(&format!("{attribute} eq \"{name}\""));
        let found: Vec<Named> = self.get(&format!("{path}?filter={filter}"), what).await?;
        match found.as_slice() {
            [one] if is_id(&one.id) => Ok(one.id.clone()),
            [_] => Err(FetchError::malformed(self.client.place(), format!("the id of {what} is none"))),
            [] => Err(FetchError::not_found(self.client.place(), format!("there is no {what} that the token may see"))),
            _ => Err(FetchError::not_found(self.client.place(), format!("there are several of {what}; use the id"))),
        }
    }
}

/// Ids are 26 lower-case letters and digits.
fn is_id(text: &str) -> bool {
    text.len() == 26 && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

#[async_trait]
impl Source for OnePassword {
    fn description(&self) -> String {
        format!("the 1Password Connect server at {} (onepassword:{})", self.config.address, self.name)
    }

    fn keep(&self) -> Duration {
        Duration::from_secs(self.config.keep.unwrap_or(60))
    }

    async fn fetch(&self, path: &str) -> Result<Document, FetchError> {
        let place = self.client.place();
        let (vault, item) = path
            .split_once('/')
            .filter(|(_, item)| !item.contains('/'))
            .ok_or_else(|| FetchError::not_found(place, "a reference is `onepassword:SERVER/VAULT/ITEM#FIELD`"))?;
        let (the_vault, the_item) = (format!("vault `{vault}`"), format!("item `{item}` in the vault `{vault}`"));
        let vault = self.id("vaults", "name", vault, &the_vault).await?;
        let item = self.id(&format!("vaults/{vault}/items"), "title", item, &the_item).await?;
        let found: Item = self.get(&format!("vaults/{vault}/items/{item}"), &the_item).await?;
        let mut record = std::collections::BTreeMap::new();
        for field in found.fields {
            let Some(value) = field.value.filter(|value| !value.is_blank()).map(Arc::new) else { continue };
            // By label as people see it, by id where labels repeat. An id is never taken over by another's label.
            if let Some(label) = field.label.filter(|label| !label.is_empty() && *label != field.id) {
                if record.contains_key(&label) {
                    let why = format!("{the_item} has two fields of one name (`{}`)", label.escape_debug());
                    return Err(FetchError::malformed(place, why));
                }
                record.insert(label, value);
            } else if record.insert(field.id.clone(), value).is_some() {
                let why = format!("{the_item} has two fields of one name (`{}`)", field.id.escape_debug());
                return Err(FetchError::malformed(place, why));
            }
        }
        Ok(Document { stamp: Stamp(vec![found.version]), ..Document::plain(Content::Record(record)) })
    }
}
