//! How a configuration names a secret without holding it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};

/// The longest reference, in bytes.
const MAX_BYTES: usize = 1024;

/// The kinds of source, as references and configurations spell them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `sealed:NAME`: a secret of the sealed file.
    Sealed,
    /// `env:VARIABLE`: a variable of the worker's own environment.
    Env,
    /// `file:MOUNT/PATH`: a file below a configured directory.
    File,
    /// `vault:SERVER/PATH`: HashiCorp Vault or OpenBao.
    Vault,
    /// `aws:ACCOUNT/SECRET`: AWS Secrets Manager.
    Aws,
    /// `azure:VAULT/SECRET[/VERSION]`: Azure Key Vault.
    Azure,
    /// `google:PROJECT/SECRET[/VERSION]`: Google Secret Manager.
    Google,
    /// `onepassword:SERVER/VAULT/ITEM`: 1Password Connect.
    OnePassword,
    /// `exec:COMMAND`: what a configured command prints.
    Exec,
}

impl Kind {
    const ALL: [Kind; 9] = [
        Kind::Sealed,
        Kind::Env,
        Kind::File,
        Kind::Vault,
        Kind::Aws,
        Kind::Azure,
        Kind::Google,
        Kind::OnePassword,
        Kind::Exec,
    ];

    /// The word before the colon.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Sealed => "sealed",
            Kind::Env => "env",
            Kind::File => "file",
            Kind::Vault => "vault",
            Kind::Aws => "aws",
            Kind::Azure => "azure",
            Kind::Google => "google",
            Kind::OnePassword => "onepassword",
            Kind::Exec => "exec",
        }
    }

    /// How a reference of this kind is written.
    pub fn form(self) -> &'static str {
        match self {
            Kind::Sealed => "sealed:NAME",
            Kind::Env => "env:VARIABLE",
            Kind::File => "file:MOUNT/PATH",
            Kind::Vault => "vault:SERVER/MOUNT/PATH#FIELD",
            Kind::Aws => "aws:ACCOUNT/SECRET",
            Kind::Azure => "azure:VAULT/SECRET",
            Kind::Google => "google:PROJECT/SECRET",
            Kind::OnePassword => "onepassword:SERVER/VAULT/ITEM#FIELD",
            Kind::Exec => "exec:COMMAND",
        }
    }

    /// Whether there are several sources of this kind, each with a name in the configuration.
    fn named(self) -> bool {
        !matches!(self, Kind::Sealed | Kind::Env | Kind::Exec)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Names one secret: a source, a path within it, and, where the source keeps records, one field.
///
/// It is no secret itself; it is what audit, logs and errors show in place of one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    kind: Kind,
    source: String,
    path: String,
    field: Option<String>,
}

/// The text is no reference. What it says is not repeated: somebody may have put the secret itself there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// It begins with no known kind.
    #[error(
        "no reference to a secret: it begins with none of `sealed:`, `env:`, `file:`, `vault:`, `aws:`, `azure:`, `google:`, \
         `onepassword:`, `exec:`. Write where the secret is kept, such as `sealed:NAME`; never the secret itself"
    )]
    Kind,
    /// Something is missing after the kind.
    #[error("an incomplete reference: write it as `{0}`")]
    Incomplete(&'static str),
    /// A part holds something that no source takes.
    #[error("a malformed reference: its {0}. Write it as `{1}`")]
    Malformed(&'static str, &'static str),
    /// Too long.
    #[error("a reference of more than {MAX_BYTES} bytes; write where the secret is kept, never the secret itself")]
    TooLong,
}

impl Reference {
    /// What kind of source it names.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The source's name in the configuration; empty where there is only one of the kind.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Where the secret is within the source.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether this names the same record as `other`, whole or in the same field.
    pub fn covers(&self, other: &Reference) -> bool {
        (self.kind, &self.source, &self.path) == (other.kind, &other.source, &other.path)
            && (self.field.is_none() || self.field == other.field)
    }

    /// Which field of the record, if one is named.
    pub fn field(&self) -> Option<&str> {
        self.field.as_deref()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.source)?;
        if self.kind.named() {
            f.write_str("/")?;
        }
        f.write_str(&self.path)?;
        match &self.field {
            Some(field) => write!(f, "#{field}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.len() > MAX_BYTES {
            return Err(ReferenceError::TooLong);
        }
        let (word, rest) = text.split_once(':').ok_or(ReferenceError::Kind)?;
        let kind = Kind::ALL.into_iter().find(|kind| kind.word() == word).ok_or(ReferenceError::Kind)?;
        let form = kind.form();
        let malformed = |part| Err(ReferenceError::Malformed(part, form));
        if rest.chars().any(|character| character.is_control() || character.is_whitespace() && character != ' ') {
            return malformed("text holds control characters");
        }
        // An item of a password store may have spaces within, never around.
        let (place, field) = match rest.rsplit_once('#') {
            Some((place, field)) => (place, Some(field)),
            None => (rest, None),
        };
        if field.is_some_and(|field| field.is_empty() || field.trim() != field) {
            return malformed("field, after `#`, is empty or has spaces around it");
        }
        if field.is_some() && matches!(kind, Kind::Env | Kind::Sealed | Kind::File) {
            return malformed("source keeps single values, so no `#FIELD` can follow");
        }
        let (source, path) = if kind == Kind::Exec {
            (place, "")
        } else if kind.named() {
            place.split_once('/').ok_or(ReferenceError::Incomplete(form))?
        } else {
            ("", place)
        };
        if (path.is_empty() && kind != Kind::Exec) || (source.is_empty() && (kind.named() || kind == Kind::Exec)) {
            return Err(ReferenceError::Incomplete(form));
        }
        if !source.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')) {
            return malformed("source's name has other characters than letters, digits, `-`, `_` and `.`");
        }
        let simple = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        match kind {
            Kind::Env => {
                if path.as_bytes()[0].is_ascii_digit() || !path.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
                {
                    return malformed("variable's name has other characters than letters, digits and `_`");
                }
            }
            Kind::Exec => {}
            Kind::Sealed => {
                if !path.bytes().all(simple) {
                    return malformed("name has other characters than letters, digits, `-`, `_` and `.`");
                }
            }
            // Whatever a source makes of dot segments, two spellings of one secret would be revoked apart.
            _ => {
                if path.split('/').any(|part| matches!(part, "" | "." | "..") || part.trim() != part) {
                    return malformed("path has an empty part, `.`, `..`, or spaces around a part");
                }
            }
        }
        Ok(Self { kind, source: source.to_owned(), path: path.to_owned(), field: field.map(str::to_owned) })
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl serde::Serialize for Reference {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_come_back_as_they_were_written() {
        for text in [
            "sealed:github-token",
            "env:GITHUB_TOKEN",
            "file:mounted/team/token",
            "vault:prod/secret/team/github#token",
            "aws:main/prod/db#password",
            "aws:main/arn:aws:secretsmanager:eu-west-1:123456789012:secret:prod/db-AbCdEf",
            "azure:kv/token/0123",
            "google:p/token/3",
            "onepassword:home/Shared Vault/My Item#api key",
            "exec:helper#token",
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_reference_is_refused_and_not_repeated() {
        for text in [
            "sk-ant-CANARY",
            "CANARY:x",
            "vault:CANARY",
            "vault:/CANARY",
            "vault:a/b//CANARY",
            "vault:a/../CANARY",
            "vault:a/CANARY#",
            "env:1CANARY",
            "env:CAN-ARY",
            "sealed:CANARY/x",
            "sealed:CANARY#x",
            "exec:CANARY x",
            "file:a/CANARY\0",
            "file:a b/CANARY",
            "env:",
            &format!("vault:a/{}", "CANARY".repeat(400)),
        ] {
            let error = text.parse::<Reference>().unwrap_err();
            assert!(!format!("{error} {error:?}").contains("CANARY"), "{error}");
        }
    }
}
