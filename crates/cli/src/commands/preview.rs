//! `palisade preview`: a page that a program inside a sandbox serves, for one browser on this machine.
//!
//! The address holds a token that is good once; who brings it gets a cookie, and nobody is let through without it. Requests
//! for another host name are refused, so that no page of another site can reach this one by a name of its own.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use clap::Args;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, COOKIE, HOST, HeaderValue, LOCATION, REFERRER_POLICY, SET_COOKIE};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use palisade_worker::perimeter::{Client, ConnectBody, Purpose};
use serde_json::json;
use subtle::ConstantTimeEq as _;
use tokio::net::TcpListener;

use crate::commands::sandboxes::{WorkerAt, failed};
use crate::local::for_each_connection;
use crate::output::{Context as _, Outcome, Output};

/// The parameter that the token comes in, and the cookie that replaces it.
const TOKEN: &str = "palisade_token";
const PASS: &str = "palisade_preview";

/// Show a page that a session's sandbox serves to a browser of this machine.
#[derive(Debug, Args)]
#[command(
    after_help = "The worker must have been started with --allow-preview. The address that is printed opens once; the \
                        browser that opens it is let in, until this command is ended with control-c."
)]
pub(crate) struct PreviewArgs {
    /// The session's id.
    session: String,
    /// The port inside.
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// The port here; a free one unless told.
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    listen: u16,
    #[command(flatten)]
    worker: WorkerAt,
}

type Body = BoxBody<Bytes, hyper::Error>;

struct Preview {
    client: Client,
    session: String,
    inside: u16,
    outside: u16,
    /// Good once.
    token: Mutex<Option<String>>,
    pass: String,
}

fn secret() -> Outcome<String> {
    let mut bytes = [0u8; 32];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).context("no random number was had")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn same(given: &str, wanted: &str) -> bool {
    given.as_bytes().ct_eq(wanted.as_bytes()).into()
}

pub(crate) async fn run(args: &PreviewArgs, out: Output) -> Outcome {
    let client = args.worker.client()?;
    // Whether it is allowed, and whether somebody serves there, is found out before an address is given away.
    let body = ConnectBody { port: args.port, purpose: Purpose::Preview };
    let tried = client.connect(&args.session, &body).await;
    drop(tried.map_err(|why| failed("nothing can be shown", &why))?);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, args.listen)).await;
    let listener = listener.context("the port cannot be listened on")?;
    let outside = listener.local_addr().context("the port cannot be listened on")?.port();
    let token = secret()?;
    let address = format!("http://127.0.0.1:{outside}/?{TOKEN}={token}");
    let preview = Arc::new(Preview {
        client,
        session: args.session.clone(),
        inside: args.port,
        outside,
        token: Mutex::new(Some(token)),
        pass: secret()?,
    });
    out.either(&json!({"url": address}), format!("open {address}"));
    for_each_connection(&listener, |stream| {
        let preview = preview.clone();
        let service = service_fn(move |request| {
            let preview = preview.clone();
            async move { Ok::<_, std::convert::Infallible>(preview.answer(request).await) }
        });
        let http = hyper::server::conn::http1::Builder::new();
        let served = http.serve_connection(TokioIo::new(stream), service).with_upgrades();
        // A browser hangs up as it likes.
        async move { _ = served.await }
    })
    .await
}

fn plain(status: StatusCode, text: &str) -> Response<Body> {
    let body = Full::new(Bytes::from(format!("{text}\n"))).map_err(|never| match never {}).boxed();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

impl Preview {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        if ![format!("127.0.0.1:{}", self.outside), format!("localhost:{}", self.outside)].iter().any(|own| own == host)
        {
            return plain(StatusCode::FORBIDDEN, "this is not the host that the preview is for");
        }
        let given = request.uri().query().unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix(TOKEN));
        if let Some(given) = given.and_then(|given| given.strip_prefix('=')) {
            return self.admit(given);
        }
        if !self.has_pass(request.headers()) {
            return plain(StatusCode::FORBIDDEN, "open the address that `palisade preview` printed; it opens once");
        }
        match self.pass_on(request).await {
            Ok(response) => response,
            Err(why) => plain(StatusCode::BAD_GATEWAY, &format!("the sandbox does not answer: {why}")),
        }
    }

    fn admit(&self, given: &str) -> Response<Body> {
        let mut token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        if !token.as_deref().is_some_and(|token| same(given, token)) {
            return plain(
                StatusCode::FORBIDDEN,
                "this address has been opened before, or is not the one that was printed",
            );
        }
        *token = None;
        let mut response = plain(StatusCode::SEE_OTHER, "let in");
        let cookie = format!("{PASS}={}; HttpOnly; SameSite=Strict; Path=/", self.pass);
        let headers = response.headers_mut();
        headers.insert(LOCATION, HeaderValue::from_static("/"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        if let Ok(cookie) = HeaderValue::from_str(&cookie) {
            headers.insert(SET_COOKIE, cookie);
        }
        response
    }

    fn has_pass(&self, headers: &HeaderMap) -> bool {
        cookies(headers).any(|cookie| {
            cookie.strip_prefix(PASS).and_then(|rest| rest.strip_prefix('=')).is_some_and(|pass| same(pass, &self.pass))
        })
    }

    async fn pass_on(&self, mut request: Request<Incoming>) -> Result<Response<Body>, String> {
        // The program inside has no business with what lets the browser in.
        let others: Vec<String> =
            cookies(request.headers()).filter(|cookie| !cookie.starts_with(PASS)).map(str::to_owned).collect();
        request.headers_mut().remove(COOKIE);
        if let Ok(others) = HeaderValue::from_str(&others.join("; "))
            && !others.is_empty()
        {
            request.headers_mut().insert(COOKIE, others);
        }
        let body = ConnectBody { port: self.inside, purpose: Purpose::Preview };
        let stream = self.client.connect(&self.session, &body).await.map_err(|why| why.to_string())?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|why| why.to_string())?;
        // Lives as long as the answer is read.
        tokio::spawn(connection.with_upgrades());
        let outside = hyper::upgrade::on(&mut request);
        let mut response = sender.send_request(request).await.map_err(|why| why.to_string())?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let inside = hyper::upgrade::on(&mut response);
            tokio::spawn(async move {
                if let (Ok(outside), Ok(inside)) = tokio::join!(outside, inside) {
                    let (mut outside, mut inside) = (TokioIo::new(outside), TokioIo::new(inside));
                    // Either side may end it.
                    let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
                }
            });
        }
        Ok(response.map(|body| body.boxed()))
    }
}

fn cookies(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok()).flat_map(|all| all.split(';')).map(str::trim)
}
