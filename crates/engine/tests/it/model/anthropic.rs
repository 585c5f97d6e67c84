//! The Messages API client against a fake that fails in every way.

use std::time::Duration;

use futures::StreamExt;
use palisade_engine::model::{
    Anthropic, AnthropicOptions, BlockKind, KeyHeader, KeySource, ModelClient, ModelErrorKind, ModelEvent, RetryPolicy,
    Secret, StopReason, TokenUsage,
};
use palisade_testkit::messages_server::{MessagesServer, Reply, block_events, start};
use serde_json::{Value, json};

use super::{Outcome, ask, assistant, request, user};

const KEY: &str = "sk-test-0123456789";

fn options(base_url: &str) -> AnthropicOptions {
    let retry = RetryPolicy { base: Duration::from_millis(1), ..RetryPolicy::default() };
    AnthropicOptions { retry, ..AnthropicOptions::new(base_url, Some(Secret::new(KEY))) }
}

fn client(server: &MessagesServer) -> Anthropic {
    Anthropic::new(options(server.base_url())).unwrap()
}

/// Asks once of a fake with these replies; how often it was asked, and what came of it.
async fn exchange(replies: impl IntoIterator<Item = Reply>) -> (usize, Outcome) {
    let server = MessagesServer::start(replies).await;
    let outcome = ask(&client(&server), request(vec![user("hi")])).await;
    server.until_closed().await;
    (server.asked().len(), outcome)
}

#[tokio::test]
async fn a_reply_arrives_whole_however_it_is_cut() {
    let blocks = [
        json!({"type": "thinking", "thinking": "Hm, naïve… 🤔", "signature": "c2lnbmF0dXJl"}),
        json!({"type": "redacted_thinking", "data": "b3BhcXVl"}),
        json!({"type": "text", "text": "Grüße, 世界"}),
        json!({"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "x"}}),
        json!({"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {"command": "printf '\"%s\"' é", "n": [1, 2.5, null]}}),
        json!({"type": "tool_use", "id": "toolu_2", "name": "read", "input": {}}),
    ];
    for piece in [1, 2, 3, 7, 1000, usize::MAX] {
        let (_, outcome) = exchange([Reply::blocks(blocks.clone(), "tool_use").in_pieces(piece)]).await;
        assert_eq!(outcome.blocks(), blocks, "pieces of {piece}");
        assert_eq!(outcome.text(), "Grüße, 世界");
        assert_eq!(outcome.events[0], ModelEvent::Start);
        let kinds = outcome.events.iter().filter_map(|event| match event {
            ModelEvent::BlockStart { kind, .. } => Some(*kind),
            _ => None,
        });
        use BlockKind::*;
        assert_eq!(kinds.collect::<Vec<_>>(), [Thinking, Thinking, Text, Other, ToolUse, ToolUse]);
        let done = outcome.done();
        assert_eq!(done.stop_reason, StopReason::ToolUse);
        assert_eq!(
            done.usage,
            TokenUsage {
                input_tokens: 11,
                output_tokens: 7,
                cache_read_input_tokens: 3,
                cache_creation_input_tokens: 5,
                ephemeral_5m: 5,
                ephemeral_1h: 0
            }
        );
    }
}

#[tokio::test]
async fn the_request_is_what_the_api_wants_with_four_breakpoints() {
    let server = MessagesServer::start([Reply::text("ok")]).await;
    let thinking = json!({"type": "thinking", "thinking": "t", "signature": "s"});
    let call = json!({"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {}});
    let result = json!({"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "out"}]});
    let mut own = user("first");
    own.content[0]["cache_control"] = json!({"type": "ephemeral", "ttl": "1h"});
    let mut both = user("and more");
    both.content.insert(0, result.clone());
    let messages = vec![own, assistant(vec![thinking.clone(), call.clone()]), both, assistant(vec![]), user("last")];
    ask(&client(&server), request(messages)).await;

    let asked = &server.asked()[0];
    assert_eq!(asked.headers["x-api-key"], KEY);
    assert_eq!(asked.headers["anthropic-version"], "2023-06-01");
    assert_eq!(asked.headers["content-type"], "application/json");
    assert!(!asked.headers.contains_key("authorization"));
    let mark = json!({"type": "ephemeral"});
    assert_eq!(
        asked.body,
        json!({
            "model": "claude-opus-5-5", "max_tokens": 1000, "stream": true, "output_config": {"effort": "high"},
            "system": [{"type": "text", "text": "Be brief.", "cache_control": mark}],
            "tools": [
                {"name": "bash", "description": "Runs bash.", "input_schema": {"type": "object"}},
                {"name": "read", "description": "Runs read.", "input_schema": {"type": "object"}, "cache_control": mark},
            ],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "first"}]},
                {"role": "assistant", "content": [thinking, call]},
                {"role": "user", "content": [result, {"type": "text", "text": "and more", "cache_control": mark}]},
                {"role": "user", "content": [{"type": "text", "text": "last", "cache_control": mark}]},
            ],
        })
    );
}

#[tokio::test]
async fn options_reach_the_wire() {
    let server = MessagesServer::start([Reply::text("ok")]).await;
    let base = format!("{}/v1/", server.base_url());
    let client = Anthropic::new(AnthropicOptions {
        key_header: KeyHeader::Bearer,
        betas: vec!["a-1".into(), "b-2".into()],
        windows: vec![("claude-".into(), 7), ("claude-opus-5".into(), 9)],
        ..options(&base)
    });
    let client = client.unwrap();
    let mut plain = request(vec![user("hi")]);
    (plain.system, plain.effort, plain.tools) = (None, None, Vec::new());
    (plain.speed, plain.inference_geo) = (Some("fast".into()), Some("us".into()));
    ask(&client, plain).await.done();
    let asked = &server.asked()[0];
    assert_eq!(asked.headers["authorization"], format!("Bearer {KEY}"));
    assert_eq!(asked.headers["anthropic-beta"], "a-1,b-2");
    assert!(!asked.headers.contains_key("x-api-key"));
    assert_eq!((&asked.body["speed"], &asked.body["inference_geo"]), (&json!("fast"), &json!("us")));
    for absent in ["system", "tools", "output_config"] {
        assert_eq!(asked.body[absent], Value::Null);
    }
    assert_eq!((client.context_window("claude-opus-5-5"), client.context_window("claude-x")), (9, 7));
    let usual = Anthropic::new(options(&base)).unwrap();
    assert_eq!(usual.context_window("claude-opus-5-5"), 1_000_000);
    assert_eq!(usual.context_window("claude-haiku-4-5"), 200_000);
}

#[tokio::test]
async fn failures_before_the_first_content_are_tried_again() {
    let overloaded = || Reply::error(529, "overloaded_error", "Overloaded");
    let cases: Vec<(&str, Vec<Reply>)> = vec![
        ("529", vec![overloaded(), overloaded(), overloaded()]),
        ("429 with a wait", vec![Reply::error(429, "rate_limit_error", "slow").header("retry-after-ms", "5")]),
        ("408, 409, 500", [408, 409, 500].map(|status| Reply::error(status, "", "")).into()),
        ("a proxy's page", vec![Reply::raw(502, "text/html", "<html>")]),
        (
            "an error event",
            vec![Reply::events([
                start(),
                json!({"type": "error", "error": {"type": "overloaded_error", "message": "o"}}),
            ])],
        ),
        ("a cut before content", vec![Reply::text("no").cut_after(1)]),
        ("an empty stream", vec![Reply::text("no").end_after(0)]),
        ("told to", vec![Reply::error(400, "invalid_request_error", "x").header("x-should-retry", "true")]),
    ];
    for (name, mut replies) in cases {
        let failures = replies.len();
        replies.push(Reply::text("ok"));
        let (asked, outcome) = exchange(replies).await;
        assert_eq!(outcome.text(), "ok", "{name}: {outcome:?}");
        assert_eq!((asked, outcome.starts()), (failures + 1, 1), "{name}");
    }
}

#[tokio::test]
async fn what_trying_again_cannot_mend_is_reported_at_once() {
    use ModelErrorKind::*;
    let error = Reply::error;
    let cases = [
        (error(400, "invalid_request_error", "max_tokens: required"), InvalidRequest, false),
        (error(400, "invalid_request_error", "prompt is too long: 9 > 8"), ContextTooLong, false),
        (error(401, "authentication_error", "invalid x-api-key"), Authentication, false),
        (error(402, "billing_error", "no credit"), Billing, false),
        (error(404, "not_found_error", "model: x"), InvalidRequest, false),
        (error(500, "api_error", "no").header("x-should-retry", "false"), RequestFailed, false),
        // Waits beyond a minute are the session's business.
        (error(429, "rate_limit_error", "slow").header("retry-after", "3600"), RateLimited, true),
        (Reply::raw(200, "text/html", "<html>"), RequestFailed, false),
        (Reply::raw(307, "text/html", "").header("location", "http://127.0.0.1:9/v1/messages"), RequestFailed, false),
    ];
    for (reply, kind, retryable) in cases {
        let (asked, outcome) = exchange([reply.clone(), Reply::text("no")]).await;
        let failure = outcome.error.unwrap();
        assert_eq!((failure.kind, failure.retryable, asked), (kind, retryable, 1), "{reply:?}: {failure}");
    }
    let (_, outcome) = exchange([error(429, "rate_limit_error", "slow").header("retry-after", "3600")]).await;
    assert_eq!(outcome.error.unwrap().retry_after, Some(Duration::from_secs(3600)));

    let (asked, outcome) = exchange(vec![error(529, "overloaded_error", "Overloaded"); 9]).await;
    let failure = outcome.error.unwrap();
    assert_eq!((failure.kind, failure.retryable, asked), (Overloaded, true, 4));
    assert_eq!(failure.message, "the model provider answered 529 overloaded_error: Overloaded (request req_fake)");
}

#[tokio::test]
async fn nothing_is_asked_twice_once_content_was_seen() {
    use ModelErrorKind::*;
    let begun = || {
        let mut events = vec![start()];
        events.extend(block_events(0, json!({"type": "text", "text": "half"})).into_iter().take(3));
        Reply::events(events)
    };
    let malformed = Reply::events([
        start(),
        json!({"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "t", "name": "bash", "input": {}}}),
        json!({"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": "{\"command\": oops"}}),
        json!({"type": "content_block_stop", "index": 0}),
        json!({"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {}}),
        json!({"type": "message_stop"}),
    ]);
    let cases = [
        (begun().cut_after(9), Disconnected),
        (begun(), Disconnected),
        (begun().frame("event: content_block_delta\ndata: {\"type\": \n\n"), Malformed),
        (begun().frame("event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"o\"}}\n\n"), Overloaded),
        (begun().frame("event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":99999999}\n\n"), Malformed),
        (malformed, Malformed),
    ];
    for (reply, kind) in cases {
        let (asked, outcome) = exchange([reply.clone(), Reply::text("no")]).await;
        assert_eq!(asked, 1, "{reply:?}");
        assert!(outcome.blocks().is_empty());
        let failure = outcome.error.unwrap();
        assert_eq!((failure.kind, failure.retryable), (kind, true), "{failure}");
    }
}

#[tokio::test]
async fn a_call_that_the_limit_cut_off_is_not_malformed() {
    let cut = |stop: &str| {
        let mut events = vec![start()];
        events.extend(block_events(0, json!({"type": "text", "text": "so"})));
        events.extend([
            json!({"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "id": "t", "name": "bash", "input": {}}}),
            json!({"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": "{\"comm"}}),
            json!({"type": "content_block_stop", "index": 1}),
            json!({"type": "message_delta", "delta": {"stop_reason": stop}, "usage": {"output_tokens": 9}}),
            json!({"type": "message_stop"}),
        ]);
        Reply::events(events)
    };
    let (_, outcome) = exchange([cut("max_tokens")]).await;
    assert_eq!(outcome.done().stop_reason, StopReason::MaxTokens);
    assert_eq!(outcome.blocks()[1]["input"], json!({}));
    let (_, outcome) = exchange([cut("model_context_window_exceeded")]).await;
    assert_eq!(outcome.done().stop_reason, StopReason::ContextWindowExceeded);
    assert_eq!(outcome.blocks().len(), 1);
}

#[tokio::test]
async fn unknown_things_are_passed_over_and_details_kept() {
    let citation = json!({"type": "char_location", "cited_text": "x"});
    let result = json!({"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [{"a": 1}]});
    let mut events = vec![json!({"type": "ping"}), start()];
    events.extend(block_events(0, result.clone()));
    events.extend([
        json!({"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": "", "citations": null}}),
        json!({"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "no"}}),
        json!({"type": "content_block_delta", "index": 1, "delta": {"type": "citations_delta", "citation": citation}}),
        json!({"type": "content_block_delta", "index": 1, "delta": {"type": "sparkle_delta", "text": "!"}}),
        json!({"type": "content_block_sparkle", "index": 77}),
        json!({"type": "content_block_stop", "index": 1}),
        json!({"type": "message_delta", "delta": {"stop_reason": "refusal", "stop_details": {"type": "refusal", "category": "cyber"}},
            "usage": {"output_tokens": null}}),
        json!({"type": "message_stop"}),
    ]);
    let (_, outcome) = exchange([Reply::events(events)]).await;
    assert_eq!(outcome.blocks(), [result, json!({"type": "text", "text": "no", "citations": [citation]})]);
    let done = outcome.done();
    assert_eq!(done.stop_reason, StopReason::Refusal);
    assert_eq!(done.stop_details, Some(json!({"type": "refusal", "category": "cyber"})));
    assert_eq!(done.usage.output_tokens, 1);
}

#[tokio::test]
async fn a_silent_stream_is_given_up() {
    let silence = |messages: usize, began: bool| async move {
        let server = MessagesServer::start([Reply::text("hello").hang_after(messages)]).await;
        let client = Anthropic::new(AnthropicOptions { idle: Duration::from_secs(2), ..options(server.base_url()) });
        let outcome = ask(&client.unwrap(), request(vec![user("hi")])).await;
        let failure = outcome.error.as_ref().unwrap();
        assert_eq!((failure.kind, failure.retryable), (ModelErrorKind::Idle, true));
        assert_eq!(!outcome.text().is_empty(), began);
        // Nothing is left behind, and nothing is asked again by the client itself.
        server.until_closed().await;
        assert_eq!(server.asked().len(), 1);
    };
    tokio::join!(silence(0, false), silence(4, true));
}

#[tokio::test]
async fn dropping_the_stream_gives_the_request_up() {
    let server = MessagesServer::start([Reply::text("hello").hang_after(4)]).await;
    let client = client(&server);
    let mut stream = client.stream(request(vec![user("hi")]));
    while !matches!(stream.next().await.unwrap().unwrap(), ModelEvent::TextDelta { .. }) {}
    drop(stream);
    server.until_closed().await;
}

#[tokio::test]
async fn a_provider_that_is_not_there_is_named() {
    // A port that the system gives to nobody.
    let outcome = ask(&Anthropic::new(options("http://127.0.0.1:9")).unwrap(), request(vec![user("hi")])).await;
    let failure = outcome.error.unwrap();
    assert_eq!((failure.kind, failure.retryable), (ModelErrorKind::RequestFailed, true));
    assert!(failure.message.starts_with("the model provider at 127.0.0.1 could not be reached: "), "{failure}");
}

#[tokio::test]
async fn https_is_spoken_where_it_is_asked_for() {
    let server = MessagesServer::start([]).await;
    let base = server.base_url().replace("http:", "https:");
    match Anthropic::new(options(&base)) {
        Ok(client) => {
            let failure = ask(&client, request(vec![user("hi")])).await.error.unwrap();
            assert_eq!(failure.kind, ModelErrorKind::RequestFailed, "{failure}");
            assert!(server.asked().is_empty());
        }
        // A machine without CA certificates is told so at start.
        Err(why) => assert!(why.to_string().contains("CA certificates"), "{why}"),
    }
}

#[tokio::test]
async fn the_key_is_shown_nowhere() {
    let echo = || Reply::error(401, "authentication_error", &format!("bad key {KEY}"));
    let server = MessagesServer::start([echo(), echo()]).await;
    let client = client(&server);
    let failure = ask(&client, request(vec![user("hi")])).await.error.unwrap();
    assert!(failure.message.contains("bad key (key)"), "{failure}");
    let shown = format!("{failure:?} {client:?} {:?} {:?}", Secret::new(KEY), KeySource::Environment("NAME".into()));
    assert!(!shown.contains(KEY), "{shown}");

    let refused = Anthropic::new(options(&format!("http://user:{KEY}@localhost"))).unwrap_err();
    assert!(!format!("{refused} {refused:?}").contains(KEY), "{refused}");
    for wrong in ["localhost:80", "ftp://x", "http://x/?key=1", "http://", ""] {
        assert!(Anthropic::new(options(wrong)).is_err(), "{wrong}");
    }
}

#[tokio::test]
async fn keys_come_from_files_and_variables() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    let file = || KeySource::File(path.clone()).read();
    assert!(file().unwrap_err().to_string().contains(path.to_str().unwrap()));
    for (content, reason) in
        [(" \n", "is empty"), ("two\nlines", "does not hold a key"), ("kéy", "does not hold a key")]
    {
        std::fs::write(&path, content).unwrap();
        let why = file().unwrap_err().to_string();
        assert!(why.contains(reason) && why.contains(path.to_str().unwrap()), "{why}");
        assert!(!why.contains("lines"));
    }
    std::fs::write(&path, format!("{KEY}\n")).unwrap();
    let server = MessagesServer::start([Reply::text("ok")]).await;
    let client = Anthropic::new(AnthropicOptions { key: Some(file().unwrap()), ..options(server.base_url()) });
    ask(&client.unwrap(), request(vec![user("hi")])).await.done();
    assert_eq!(server.asked()[0].headers["x-api-key"], KEY);

    assert!(KeySource::Environment("PATH".into()).read().is_ok());
    let unset = KeySource::Environment("PALISADE_NO_SUCH_KEY".into()).read().unwrap_err();
    assert!(unset.to_string().contains("PALISADE_NO_SUCH_KEY"));
}
