//! The routes, by the API's nouns.

pub(crate) mod agents;
mod environments;
mod events;
mod health;
mod keys;
mod sessions;
mod work;

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use palisade_api::{ErrorType, RequestId};
use serde::Serialize;

use crate::auth::Caller;
use crate::error::{Answer, Fault};
use crate::query::Query;
use crate::service::Service;

type Shared = State<Arc<Service>>;

/// An answer with a JSON body.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Response {
    let (status, text) = match serde_json::to_vec(value) {
        Ok(text) => (status, text),
        Err(why) => {
            tracing::error!(error = %why, "an answer could not be written");
            (StatusCode::INTERNAL_SERVER_ERROR, Vec::new())
        }
    };
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// 200 with a JSON body.
pub(crate) fn ok(value: &impl Serialize) -> Answer {
    Ok(json(StatusCode::OK, value))
}

/// The body of a request, within the server's bound.
pub(crate) struct RawBody(pub(crate) Bytes);

impl FromRequest<Arc<Service>> for RawBody {
    type Rejection = Fault;

    async fn from_request(request: Request, service: &Arc<Service>) -> Result<RawBody, Fault> {
        let (parts, body) = request.into_parts();
        crate::body::read(&parts.headers, body, service.max_body).await.map(RawBody)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut http::request::Parts, _: &S) -> Result<Query, Fault> {
        Query::parse(parts.uri.query())
    }
}

/// Everything, behind the layer that every request passes.
pub(crate) fn router(service: Arc<Service>) -> Router {
    Router::new()
        .merge(agents::routes())
        .merge(environments::routes())
        .merge(work::routes())
        .merge(sessions::routes())
        .merge(events::routes())
        .merge(health::routes())
        .merge(keys::routes())
        .fallback(not_served)
        .method_not_allowed_fallback(wrong_method)
        .layer(axum::middleware::from_fn_with_state(service.clone(), front))
        .with_state(service)
}

/// The first parts of documented paths that this version does not serve.
const NOT_SERVED: [&str; 11] = [
    "vaults",
    "memory_stores",
    "deployments",
    "deployment_runs",
    "dreams",
    "files",
    "skills",
    "tunnels",
    "user_profiles",
    "models",
    "organizations",
];

async fn not_served(request: Request) -> Fault {
    let path = request.uri().path();
    let mut parts = path.trim_matches('/').split('/');
    let first = (parts.next(), parts.next());
    let documented = match first {
        (Some("v1"), Some(noun)) if NOT_SERVED.contains(&noun) => true,
        (Some("v1"), Some("sessions")) => matches!(parts.nth(1), Some("threads" | "resources")),
        _ => false,
    };
    let message = if documented {
        let noun = if first.1 == Some("sessions") { "this part of sessions" } else { first.1.unwrap_or("this") };
        format!("this server version does not serve {noun}")
    } else {
        "there is no such operation: check the path".to_owned()
    };
    Fault::new(ErrorType::NotFound, message)
}

async fn wrong_method(request: Request) -> Fault {
    let message = format!("{} is not allowed here", request.method());
    Fault::invalid(message).status(StatusCode::METHOD_NOT_ALLOWED)
}

/// Names the request, finds out who calls, counts, and gives errors their envelope.
async fn front(State(service): Shared, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let id = RequestId::from_bytes(&palisade_engine::random_bytes());
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let mut response = match admit(&service, &mut request).await {
        Ok(()) => next.run(request).await,
        Err(fault) => axum::response::IntoResponse::into_response(fault),
    };
    if let Some(fault) = response.extensions_mut().remove::<Fault>() {
        let allow = response.headers().get(header::ALLOW).cloned();
        response = fault.allow(allow).render(id.as_str());
    }
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        response.headers_mut().insert(HeaderName::from_static("request-id"), value);
    }
    let status = response.status();
    let route = route.as_ref().map_or("other", MatchedPath::as_str);
    // A method of the client's own making must not become a label.
    let label =
        if method.as_str().len() <= 7 && status != StatusCode::METHOD_NOT_ALLOWED { method.as_str() } else { "other" };
    service.metrics.count(label, route, status.as_u16(), began.elapsed());
    if status.is_server_error() {
        tracing::warn!(%method, route, status = status.as_u16(), request = %id, "a request failed");
    } else {
        tracing::debug!(%method, route, status = status.as_u16(), request = %id, "a request");
    }
    response
}

async fn admit(service: &Arc<Service>, request: &mut Request) -> Answer<()> {
    let path = request.uri().path();
    // Probes and metrics alone are open; whatever is added is not, unless it is named here.
    if matches!(path, "/healthz" | "/readyz" | "/metrics") {
        return Ok(());
    }
    let caller = Caller::identify(service, request.headers()).await?;
    service.limiter.admit(caller.account(), request.method(), path)?;
    request.extensions_mut().insert(caller);
    Ok(())
}
