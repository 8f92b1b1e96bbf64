//! Hedging: an attempt that has used up its time goes on beside the next one, and the first answer that would not be retried
//! is kept. The others are dropped, which resets them upstream.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use crate::http::body::RequestSource;
use crate::http::stream::StreamCell;
use crate::router::Outcome as RetryOutcome;

use super::attempt::{self, Answer};
use super::failure::Failure;
use super::plan::Plan;

/// An attempt under way.
type Attempt<'a> = Pin<Box<dyn Future<Output = Result<Answer, Failure>> + 'a>>;

/// Makes an attempt, and more beside it as each runs out of its time, until one outcome can be kept or none is left.
pub(super) async fn run(
    plan: &RefCell<Plan>,
    cell: &Rc<StreamCell>,
    source: &Rc<RequestSource>,
) -> Result<Answer, Failure> {
    let per_try = plan.borrow().timeouts.per_try;
    let mut attempts = vec![later(plan, cell, source, Duration::ZERO)];
    let mut patience = until(per_try, Some(Duration::ZERO));
    let mut timer = cell.timer();
    loop {
        let ended = poll_fn(|context| {
            // All are polled with one waker, so that those that read the request's body cannot miss each other's pieces.
            for (index, attempt) in attempts.iter_mut().enumerate() {
                if let Poll::Ready(result) = attempt.as_mut().poll(context) {
                    return Poll::Ready(Some((index, result)));
                }
            }
            timer.poll_until(patience, context).map(|()| None)
        })
        .await;
        let wait = match ended {
            None => {
                patience = None;
                out_of_time(plan, cell, source)
            }
            Some((index, result)) => {
                if index + 1 == attempts.len() {
                    // The one whose time runs.
                    patience = None;
                }
                drop(attempts.remove(index));
                if attempts.is_empty() || !plan.borrow().is_bad(outcome_of(&result)) {
                    note(cell, &result);
                    return result;
                }
                // A bad outcome is retried at once, although another attempt may still bring a good one.
                let outcome = outcome_of(&result);
                plan.borrow_mut().retry(cell, source, outcome)
            }
        };
        if let Some(wait) = wait {
            patience = until(per_try, Some(wait));
            attempts.push(later(plan, cell, source, wait));
        }
    }
}

/// An attempt that begins after a while.
fn later<'a>(
    plan: &'a RefCell<Plan>,
    cell: &'a Rc<StreamCell>,
    source: &'a Rc<RequestSource>,
    wait: Duration,
) -> Attempt<'a> {
    Box::pin(async move {
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        attempt::run_unlimited(plan, cell, source).await
    })
}

/// When an attempt that begins after a while has used up its time.
fn until(per_try: Option<Duration>, wait: Option<Duration>) -> Option<Instant> {
    let (limit, wait) = per_try.zip(wait)?;
    Some(Instant::now() + wait + limit)
}

/// An attempt's outcome as retries see it.
fn outcome_of(result: &Result<Answer, Failure>) -> RetryOutcome<'_> {
    match result {
        Ok(answer) => RetryOutcome::Headers(answer.head.status, &answer.head.map),
        Err(failure) => failure.retry_outcome(),
    }
}

/// The record of the stream tells of the attempt that is kept, not of the one that was made last.
fn note(cell: &StreamCell, result: &Result<Answer, Failure>) {
    let Ok(Answer {
        seen: Some(seen), ..
    }) = result
    else {
        return;
    };
    cell.with(|state| {
        let upstream = &mut state.stream.info.upstream;
        let attempts = upstream.attempts;
        upstream.clone_from(seen);
        upstream.attempts = attempts;
    });
}

/// An attempt is late: how long to wait before another one beside it, if there is to be one.
fn out_of_time(
    plan: &RefCell<Plan>,
    cell: &Rc<StreamCell>,
    source: &Rc<RequestSource>,
) -> Option<Duration> {
    let mut plan = plan.borrow_mut();
    // QUIRK: `upstream_rq_per_try_timeout` counts attempts that are given up only.
    plan.report_timeout(cell);
    // Two attempts cannot share what is still to come of the request.
    if !source.is_read() {
        return None;
    }
    plan.was_timeout = true;
    plan.retry(cell, source, RetryOutcome::SoftTimeout)
}
