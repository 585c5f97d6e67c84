//! What was revoked, also after the worker has started anew.

use std::io;
use std::path::{Path, PathBuf};

use palisade_checkpoint::{Durable, write_whole};
use palisade_vault::{LeaseLeft, Reference, Vault};
use tokio::sync::Mutex;

use super::OpenError;

/// The file in the state directory: a list of references, as JSON.
const FILE: &str = "revoked.json";

/// Changes what is revoked in the vault, and keeps it.
pub(super) struct Revoked {
    vault: Vault,
    state: PathBuf,
    /// Held while it changes, so that the file has what the vault has.
    changing: Mutex<()>,
}

impl Revoked {
    /// Takes away what an earlier process was told to. A file that cannot be read keeps the worker from starting: something would
    /// be given out again that somebody has taken away.
    pub(super) fn open(state: &Path, vault: &Vault) -> Result<Revoked, OpenError> {
        let path = state.join(FILE);
        let wrong = |cause| OpenError::Revoked { path: path.clone(), cause };
        match std::fs::read(&path) {
            Ok(text) => {
                let text: Vec<String> = serde_json::from_slice(&text).map_err(|why| wrong(why.into()))?;
                for reference in text {
                    let reference = reference.parse::<Reference>().map_err(|why| wrong(io::Error::other(why)))?;
                    vault.begin_without(reference);
                }
            }
            Err(why) if why.kind() == io::ErrorKind::NotFound => {}
            Err(why) => return Err(wrong(why)),
        }
        Ok(Revoked { vault: vault.clone(), state: state.to_owned(), changing: Mutex::default() })
    }

    fn keep(&self, references: &[Reference]) -> Result<(), String> {
        let texts: Vec<String> = references.iter().map(ToString::to_string).collect();
        let text = serde_json::to_vec(&texts).map_err(|why| why.to_string())?;
        write_whole(&self.state, FILE, &text, Durable::Yes).map_err(|why| why.to_string())
    }

    /// Takes secrets from everybody. Also says whether that holds when the worker starts anew: it holds now in any case.
    pub(super) async fn revoke(&self, references: &[Reference]) -> (Vec<LeaseLeft>, Result<(), String>) {
        let changing = self.changing.lock().await;
        let mut left = Vec::new();
        for reference in references {
            left.extend(self.vault.revoke(reference).await);
        }
        let kept = self.keep(&self.vault.revoked());
        drop(changing);
        (left, kept)
    }

    /// Undoes it, once that is kept.
    pub(super) async fn allow(&self, references: &mut Vec<Reference>) -> Result<(), String> {
        let changing = self.changing.lock().await;
        let mut rest = self.vault.revoked();
        rest.retain(|revoked| !references.contains(revoked));
        self.keep(&rest)?;
        references.retain(|reference| self.vault.allow(reference));
        drop(changing);
        Ok(())
    }
}
