//! What every back-end must do: a list of cases that know only the trait. A back-end joins with one `suite!` line.

pub(crate) mod commits;
pub(crate) mod hints;
pub(crate) mod lists;
pub(crate) mod logs;
pub(crate) mod queues;

/// Makes a test of each case for one back-end: `suite!(module, open)`, where `open()` gives a value whose field `store` is an
/// `Arc<dyn Store>` over an empty store.
macro_rules! suite {
    ($backend:ident, $open:expr) => {
        $crate::conformance::cases! { $backend, $open,
            commits: a_record_comes_back_as_it_was_put, revisions_count_puts, every_precondition_holds_or_refuses,
                preconditions_see_the_state_before_the_batch, a_failing_batch_leaves_nothing, an_empty_batch_checks_only,
                concurrent_commits_to_one_record_are_serial, deleting_a_session_takes_its_log_with_it,
                deleting_what_is_not_there_is_no_error, texts_and_numbers_come_back_whole;
            lists: lists_are_by_creation_then_id, archived_records_are_left_out, filters_narrow_alone_and_together,
                labels_follow_the_record, a_cursor_goes_on_where_the_page_ended, a_cursor_holds_while_records_come_and_go,
                counts_agree_with_lists, kinds_do_not_mix;
            logs: a_log_is_gapless, a_log_is_read_by_page_type_and_time, events_are_found_by_id,
                an_event_id_is_used_once, pending_events_keep_their_order, promotion_moves_an_event_into_the_log,
                sessions_do_not_mix;
            queues: due_is_by_time_creation_and_id, due_filters_by_parent_and_status, leases_only_grow,
                only_one_claims_a_lease;
            hints: hints_say_what_changed, a_failed_batch_hints_nothing, a_hint_comes_before_the_commit_returns;
        }
    };
}

macro_rules! cases {
    ($backend:ident, $open:expr, $($module:ident: $($case:ident),+;)+) => {
        mod $backend {
            #[allow(unused_imports, reason = "a back-end's opener may use nothing of the parent")]
            use super::*;

            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    let opened = ($open)();
                    $crate::conformance::$module::$case(&*opened.store).await;
                }
            )+)+
        }
    };
}

pub(crate) use {cases, suite};
