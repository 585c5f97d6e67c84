//! Streams: a connection that a request has turned into a command's, a listener's or a port's.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{ConnectInfo, Path, Request, State as Given};
use axum::http::{StatusCode, header};
use axum::response::Response;
use hyper_util::rt::TokioIo;
use palisade_sandbox::{Exec, ExecRequest, Output};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};

use super::audit;
use super::frame::{Frame, Kind};
use super::gate::Peer;
use super::routes::{Refusal, State, sandbox};
use super::wire::{AttachBody, ConnectBody, ExecBody, ExitBody, Purpose, TerminalSize};

/// The protocol that a request for a stream names in its `Upgrade` header.
pub(crate) const PROTOCOL: &str = "palisade-stream";
/// The longest body of a request for a stream.
const LONGEST: usize = 1 << 20;

/// Reads the body of a request and takes over its connection.
async fn upgrade<T: DeserializeOwned>(mut request: Request) -> Result<(T, hyper::upgrade::OnUpgrade), Refusal> {
    let asked = request.headers().get(header::UPGRADE).is_some_and(|name| name == PROTOCOL);
    if !asked {
        let message = format!("this request becomes a stream: send `Connection: upgrade` and `Upgrade: {PROTOCOL}`");
        return Err(Refusal::new(StatusCode::UPGRADE_REQUIRED, message));
    }
    let connection = hyper::upgrade::on(&mut request);
    let body = axum::body::to_bytes(request.into_body(), LONGEST).await;
    let body = body.map_err(|why| Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, why.to_string()))?;
    let body = serde_json::from_slice(&body).map_err(|why| Refusal::bad(format!("the body is malformed: {why}")))?;
    Ok((body, connection))
}

fn switching() -> Response {
    let response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, PROTOCOL);
    response.body(Body::empty()).unwrap_or_default()
}

pub(crate) async fn exec(
    Given(state): Given<Arc<State>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(session): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    let (body, connection) = upgrade::<ExecBody>(request).await?;
    if body.argv.first().is_none_or(String::is_empty) {
        return Err(Refusal::bad("argv is empty: name the program to run"));
    }
    audit::note(peer, &session, "exec", &audit::redacted(&body.argv));
    let sandbox = sandbox(&state, &session, body.start).await?;
    let request = ExecRequest {
        argv: body.argv,
        env: body.env,
        cwd: body.cwd,
        stdin: body.stdin,
        tty: body.tty.map(Into::into),
        detach: body.detach,
        label: body.label,
        uid: body.uid,
        timeout: body.timeout_ms.map(Duration::from_millis),
        output_limit: body.output_limit,
    };
    let exec = sandbox.exec(request).await.map_err(Refusal::ended)?;
    carry(connection, exec);
    Ok(switching())
}

pub(crate) async fn attach(
    Given(state): Given<Arc<State>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(session): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    let (body, connection) = upgrade::<AttachBody>(request).await?;
    audit::note(peer, &session, "attach", &body.process.to_string());
    let sandbox = sandbox(&state, &session, false).await?;
    let exec = sandbox.attach(body.process, body.from, body.hold).await.map_err(Refusal::ended)?;
    carry(connection, exec);
    Ok(switching())
}

pub(crate) async fn connect(
    Given(state): Given<Arc<State>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(session): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    let (body, connection) = upgrade::<ConnectBody>(request).await?;
    audit::note(peer, &session, "connect", &format!("{:?} {}", body.purpose, body.port));
    if body.purpose == Purpose::Preview && !state.allow_preview {
        let message = "previews are off on this worker: start it with --allow-preview to have them";
        return Err(Refusal::new(StatusCode::FORBIDDEN, message));
    }
    let opened = sandbox(&state, &session, false).await?.connect(body.port).await.map_err(Refusal::ended)?;
    // The stream is the connection itself, without frames.
    tokio::spawn(async move {
        if let Ok(stream) = connection.await
            && let Err(error) = opened.relay(TokioIo::new(stream)).await
        {
            tracing::debug!(%error, "a connection into a sandbox ended");
        }
    });
    Ok(switching())
}

/// Carries a command's words over the connection, as soon as it is one's own. It ends with the command, with the sandbox or
/// with the connection, whichever is first.
fn carry(connection: hyper::upgrade::OnUpgrade, exec: Exec) {
    tokio::spawn(async move {
        let Ok(stream) = connection.await else { return };
        if let Err(error) = stream_command(TokioIo::new(stream), exec).await {
            tracing::debug!(%error, "an admin stream ended");
        }
    });
}

async fn stream_command(stream: impl AsyncRead + AsyncWrite, mut exec: Exec) -> std::io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let input = exec.input();
    let inwards = async move {
        while let Some(frame) = Frame::read(&mut reader).await? {
            let done = match frame.kind {
                Kind::Stdin if frame.payload.is_empty() => input.close().await,
                Kind::Stdin => input.write(&frame.payload).await,
                Kind::Resize => {
                    let size: TerminalSize = serde_json::from_slice(&frame.payload)?;
                    input.resize(size.into()).await
                }
                Kind::Signal => input.signal(serde_json::from_slice(&frame.payload)?).await,
                _ => return Err(std::io::Error::other("a frame that only the worker sends")),
            };
            if done.is_err() {
                // The end of the sandbox is told by who listens to the command.
                return std::future::pending().await;
            }
        }
        Ok(())
    };
    let outwards = async {
        Frame::json(Kind::Started, &exec.process()).write(&mut writer).await?;
        loop {
            let frame = match exec.next().await {
                Ok(Some(Output::Stdout(bytes))) => Frame::new(Kind::Stdout, bytes),
                Ok(Some(Output::Stderr(bytes))) => Frame::new(Kind::Stderr, bytes),
                Ok(Some(Output::Lost(bytes))) => Frame::json(Kind::Lost, &bytes),
                Ok(None) => {
                    let exit = ExitBody::from(exec.status().unwrap_or_default());
                    return Frame::json(Kind::Exit, &exit).write(&mut writer).await;
                }
                Err(why) => return Frame::new(Kind::Failed, why.to_string()).write(&mut writer).await,
            };
            frame.write(&mut writer).await?;
        }
    };
    tokio::select! {
        done = inwards => done,
        done = outwards => done,
    }
}
