//! Lists: order, filters, cursors.

use palisade_api::Timestamp;
use serde_json::{Value, json};

use crate::rig::{Rig, id, message, toolset};

fn ids(page: &Value) -> Vec<String> {
    page["data"].as_array().unwrap().iter().map(id).collect()
}

#[tokio::test]
async fn sessions_are_paged_in_both_directions() {
    let rig = Rig::start("otherwise: {reply: [{text: Done.}]}").await;
    let (agent, environment) = (rig.agent(json!([toolset()])).await, rig.environment().await);
    let mut all = Vec::new();
    for _ in 0..5 {
        let body = json!({"agent": agent, "environment_id": environment});
        all.push(id(&rig.post("/v1/sessions", body).await.ok()));
    }
    let first = rig.get("/v1/sessions?limit=2&order=asc").await.ok();
    assert_eq!(ids(&first), all[..2]);
    assert!(first["prev_page"].is_null());
    let next = |page: &Value| format!("/v1/sessions?limit=2&order=asc&page={}", page["next_page"].as_str().unwrap());
    let prev = |page: &Value| format!("/v1/sessions?limit=2&order=asc&page={}", page["prev_page"].as_str().unwrap());
    let second = rig.get(&next(&first)).await.ok();
    assert_eq!(ids(&second), all[2..4]);
    let third = rig.get(&next(&second)).await.ok();
    assert_eq!(ids(&third), all[4..]);
    assert!(third["next_page"].is_null());
    let back = rig.get(&prev(&third)).await.ok();
    assert_eq!(ids(&back), all[2..4]);
    let back = rig.get(&prev(&back)).await.ok();
    assert_eq!(ids(&back), all[..2]);
    assert!(back["prev_page"].is_null());
    assert_eq!(ids(&rig.get(&next(&back)).await.ok()), all[2..4]);
    let newest = rig.get("/v1/sessions?limit=1").await.ok();
    assert_eq!(ids(&newest), all[4..]);

    // A cursor belongs to its list, its filters and its order.
    let cursor = first["next_page"].as_str().unwrap();
    for path in [
        format!("/v1/sessions?limit=2&page={cursor}"),
        format!("/v1/sessions?order=asc&statuses[]=idle&page={cursor}"),
        format!("/v1/agents?page={cursor}"),
        format!("/v1/sessions/{}/events?page={cursor}", all[0]),
        format!("/v1/sessions?order=asc&page={}x", &cursor[..cursor.len() - 4]),
        "/v1/sessions?page=%00".to_owned(),
        "/v1/sessions?page=e30".to_owned(),
    ] {
        assert!(rig.get(&path).await.refused(400, "invalid_request_error").starts_with("page"), "{path}");
    }

    rig.post(&format!("/v1/sessions/{}/archive", all[0]), json!({})).await.ok();
    let count = |page: Value| page["data"].as_array().unwrap().len();
    assert_eq!(count(rig.get("/v1/sessions").await.ok()), 4);
    assert_eq!(count(rig.get("/v1/sessions?include_archived=true").await.ok()), 5);
    assert_eq!(
        count(
            rig.get("/v1/sessions?include_archived=true&statuses%5B%5D=terminated&statuses%5B%5D=running").await.ok()
        ),
        1
    );
    assert_eq!(count(rig.get(&format!("/v1/sessions?agent_id={agent}&agent_version=1")).await.ok()), 4);
    assert_eq!(count(rig.get(&format!("/v1/sessions?agent_id={agent}&agent_version=2")).await.ok()), 0);
    assert_eq!(count(rig.get("/v1/sessions?deployment_id=depl_x").await.ok()), 0);
    assert_eq!(count(rig.get("/v1/sessions?deployment_id=").await.ok()), 4);
    let third = rig.get(&format!("/v1/sessions/{}", all[2])).await.ok();
    let at = third["created_at"].as_str().unwrap();
    assert!(at.parse::<Timestamp>().is_ok());
    let after = format!("/v1/sessions?order=asc&created_at%5Bgt%5D={}", at.replace('Z', "+00:00"));
    assert_eq!(ids(&rig.get(&after).await.ok()), all[3..]);
    assert_eq!(
        ids(&rig.get(&format!("/v1/sessions?order=asc&created_at[gte]={at}&created_at[lte]={at}")).await.ok()),
        all[2..3]
    );

    for (query, parameter) in [
        ("limit=0", "limit"),
        ("limit=x", "limit"),
        ("limit=101", "limit"),
        ("limit=1&limit=2", "limit"),
        ("order=up", "order"),
        ("statuses[]=happy", "statuses"),
        ("agent_version=1", "agent_version"),
        ("include_archived=maybe", "include_archived"),
        ("created_at[gt]=yesterday", "created_at[gt]"),
    ] {
        let refused = rig.get(&format!("/v1/sessions?{query}")).await.refused(400, "invalid_request_error");
        assert!(refused.starts_with(parameter), "{query}: {refused}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn events_are_listed_with_what_waits_last() {
    // The model never answers, so that a second message has to wait.
    let rig = Rig::start("steps: [{reply: [{text: Wait.}], error: hang}]").await;
    let (agent, environment) = (rig.agent(json!([toolset()])).await, rig.environment().await);
    let session = rig.session(&agent, &environment, "One.").await;
    rig.until(&session, "span.model_request_start", 1).await;
    let two = rig.send(&session, json!([message("Two.")])).await.ok()["data"][0].clone();
    let three = rig.send(&session, json!([message("Three.")])).await.ok()["data"][0].clone();
    assert!(two["processed_at"].is_null());
    let path = format!("/v1/sessions/{session}/events");
    let events = rig.events(&session).await;
    assert_eq!(events[events.len() - 2..], [two.clone(), three.clone()]);
    let mut paged = Vec::new();
    for order in ["asc", "desc"] {
        paged.clear();
        let mut next = format!("{path}?limit=1&order={order}");
        loop {
            let page = rig.get(&next).await.ok();
            paged.extend(page["data"].as_array().unwrap().iter().cloned());
            let Some(cursor) = page["next_page"].as_str() else { break };
            next = format!("{path}?limit=1&order={order}&page={cursor}");
        }
        if order == "desc" {
            paged.reverse();
        }
        assert_eq!(paged, events, "{order}");
    }
    let messages = rig.get(&format!("{path}?types%5B%5D=user.message&types[]=agent.message")).await.ok();
    assert_eq!(ids(&messages).len(), 3);
    let spans = rig.get(&format!("{path}?types=span.model_request_start")).await.ok();
    assert_eq!(ids(&spans).len(), 1);
    // A range is about when events were processed, which these two were not.
    let processed = rig.get(&format!("{path}?created_at[gte]=2000-01-01T00:00:00Z&types[]=user.message")).await.ok();
    assert_eq!(ids(&processed).len(), 1);
    for (query, parameter) in [
        ("types[]=session.deleted", "types"),
        ("types[]=user.shout", "types"),
        ("limit=1001", "limit"),
        ("order=x", "order"),
    ] {
        assert!(rig.get(&format!("{path}?{query}")).await.refused(400, "invalid_request_error").starts_with(parameter));
    }
    rig.stop().await;
}
