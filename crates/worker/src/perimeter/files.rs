//! Files as tar streams. The sandbox packs and unpacks them itself; the worker only carries them.

use std::io;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{ConnectInfo, Path, Query, State as Given};
use axum::http::{StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use palisade_sandbox::{Exec, Output};
use serde::Deserialize;
use tokio::sync::mpsc;

use super::audit;
use super::body::{PIECES, Pieces};
use super::gate::Peer;
use super::routes::{Refusal, State, sandbox};

/// What is kept of a refusal's words.
const SAID: usize = 4096;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct At {
    path: String,
}

/// What a copy said about its failure, if it failed.
fn failure(exec: &Exec, said: &[u8]) -> Option<String> {
    let status = exec.status()?;
    (status.code != Some(0)).then(|| {
        let said = String::from_utf8_lossy(said).trim().to_owned();
        if said.is_empty() { format!("the copy ended with {status:?}") } else { said }
    })
}

pub(crate) async fn get(
    Given(state): Given<Arc<State>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(session): Path<String>,
    Query(at): Query<At>,
) -> Result<Response, Refusal> {
    audit::note(peer, &session, "copy out", &at.path);
    let mut exec = sandbox(&state, &session, false).await?.copy_out(&at.path).await.map_err(Refusal::ended)?;
    let mut said = Vec::new();
    // The first piece decides whether there is anything at all.
    let first = loop {
        match exec.next().await.map_err(Refusal::ended)? {
            Some(Output::Stdout(bytes)) => break bytes,
            Some(Output::Stderr(bytes)) if said.len() < SAID => said.extend(bytes),
            Some(_) => {}
            None => {
                let why = failure(&exec, &said).unwrap_or_else(|| "nothing was packed".to_owned());
                return Err(Refusal::bad(why));
            }
        }
    };
    let (sender, pieces) = mpsc::channel(PIECES);
    tokio::spawn(async move {
        let mut piece = Ok(Bytes::from(first));
        // Nobody who wants more is the end of it.
        while sender.send(piece).await.is_ok() {
            piece = loop {
                match exec.next().await {
                    Ok(Some(Output::Stdout(bytes))) => break Ok(bytes.into()),
                    Ok(Some(Output::Stderr(bytes))) if said.len() < SAID => said.extend(bytes),
                    Ok(Some(_)) => {}
                    Ok(None) => match failure(&exec, &said) {
                        Some(why) => break Err(io::Error::other(why)),
                        None => return,
                    },
                    Err(why) => break Err(io::Error::other(why)),
                }
            };
        }
    });
    let response = Response::builder().header(header::CONTENT_TYPE, "application/x-tar");
    Ok(response.body(Body::new(Pieces(pieces))).unwrap_or_default())
}

pub(crate) async fn put(
    Given(state): Given<Arc<State>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(session): Path<String>,
    Query(at): Query<At>,
    mut body: Body,
) -> Result<StatusCode, Refusal> {
    audit::note(peer, &session, "copy in", &at.path);
    let mut exec = sandbox(&state, &session, false).await?.copy_in(&at.path).await.map_err(Refusal::ended)?;
    let input = exec.input();
    let send = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|why| Refusal::bad(format!("the archive did not arrive whole: {why}")))?;
            if let Some(bytes) = frame.data_ref() {
                input.write(bytes).await.map_err(Refusal::ended)?;
            }
        }
        input.close().await.map_err(Refusal::ended)
    };
    let listen = async {
        let mut said = Vec::new();
        while let Some(output) = exec.next().await.map_err(Refusal::ended)? {
            if let Output::Stderr(bytes) = output
                && said.len() < SAID
            {
                said.extend(bytes);
            }
        }
        match failure(&exec, &said) {
            Some(why) => Err(Refusal::bad(why)),
            None => Ok(StatusCode::NO_CONTENT),
        }
    };
    // A refusal comes before all of the archive has been sent; an archive that breaks off takes the command with it.
    let (_, done) = tokio::try_join!(send, listen)?;
    Ok(done)
}
