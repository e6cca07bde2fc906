//! A question to the user, and the wait for its answer.
//!
//! Invariant: while a question waits, the fact `lamplighter.wait` names it, so that the host keeps the container and
//! the runner leaves the answer alone. However the wait ends, the name goes; also with the client or the server.
//! Invariant: nobody is waited for who cannot answer: a question that the host does not deliver ends its wait.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lamplighter::base::Ms;
use lamplighter::session::rows::{MAX_QUESTION_WAIT, QUESTION_WAIT, is_option_label};
use lamplighter::session::{InboundRow, NewOutbound, ids};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::arguments::{AskUserQuestion, QuestionOption};
use super::desk::{Desk, Feature, row, said};
use super::{Done, Refusal};
use crate::dispatch::random;
use crate::launch::{epoch_ms, wall_now};
use crate::wake::policy::{PollPolicy, SHORT};
use crate::wake::watch::{Watch, fingerprint};

/// Most options; more do not fit a screen or a platform's buttons.
const MAX_OPTIONS: usize = 20;
/// Longest label in characters.
const MAX_LABEL: usize = 80;

/// Asks and waits for the answer, the timeout or the end of the call.
pub(super) async fn ask(desk: Arc<Mutex<Desk>>, call: AskUserQuestion, cancelled: CancellationToken) -> Done {
    let wait = wait_of(call.timeout)?;
    let until = Instant::now() + wait;
    let (asked, path) = on_desk(&desk, move |desk| put(desk, &call, wait)).await?;
    let ended = watch(&desk, &asked, path, until, cancelled).await;
    let (answer, done) = match ended {
        Ended::Answered { row, value } => (Some(row), Ok(value)),
        Ended::TimedOut => {
            let seconds = wait.as_secs();
            let late = "an answer that comes later is named in a later prompt as late";
            (None, Err(format!("nobody answered within {seconds} s; {late}").into()))
        }
        Ended::NotDelivered => {
            let why = "a note of the host says why";
            (None, Err(format!("the question was not delivered, so nobody can answer it; {why}").into()))
        }
        Ended::Cancelled => (None, Err("the call was cancelled; the question may still be answered".into())),
        Ended::Lost(why) => (None, Err(why)),
    };
    // What was answered is the answer, even when the end of the wait could not be written down.
    let _ = on_desk(&desk, move |desk| desk.end_wait(&asked, answer.as_deref())).await;
    done
}

/// How long a call waits that asks for so many seconds.
fn wait_of(seconds: Option<f64>) -> Result<Duration, Refusal> {
    let most = Duration::from(MAX_QUESTION_WAIT).as_secs_f64();
    match seconds {
        None => Ok(QUESTION_WAIT.into()),
        Some(seconds) if (1.0..=most).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        Some(seconds) => Err(format!("the timeout is {seconds} s; it can be 1 to {most}").into()),
    }
}

fn lock(desk: &Mutex<Desk>) -> MutexGuard<'_, Desk> {
    // Each use is one transaction or a read.
    desk.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn on_desk<T: Send + 'static>(
    desk: &Arc<Mutex<Desk>>,
    work: impl FnOnce(&mut Desk) -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let desk = Arc::clone(desk);
    let done = tokio::task::spawn_blocking(move || work(&mut lock(&desk))).await;
    done.unwrap_or_else(|_| Err("the tool failed; its log line says where".into()))
}

/// Writes the question. Returns its id, and the file that its answer comes in.
fn put(desk: &mut Desk, call: &AskUserQuestion, wait: Duration) -> Result<(String, PathBuf), Refusal> {
    said(&call.title, "the title")?;
    said(&call.question, "the question")?;
    let options = options(&call.options)?;
    let target = desk.own_target("a question")?;
    desk.require(Feature::Questions, &target.address)?;
    let now = wall_now();
    let id = ids::message(epoch_ms(now), random());
    let timeout = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    let content = json!({
        "type": "ask_question", "questionId": id, "title": call.title, "question": call.question,
        "options": options, "timeoutMs": timeout,
    });
    let row = NewOutbound { id: id.clone(), ..row(&target, "chat-sdk", &content) };
    desk.put_question(&row, now, now + Ms(timeout))?;
    Ok((id, desk.inbound_db.clone()))
}

fn options(given: &[QuestionOption]) -> Result<Vec<Value>, Refusal> {
    if given.is_empty() || given.len() > MAX_OPTIONS {
        return Err(format!("there are {} options; give 1 to {MAX_OPTIONS}", given.len()).into());
    }
    let one = |option: &QuestionOption| {
        let (label, selected, value) = match option {
            QuestionOption::Label(label) => (label, None, None),
            QuestionOption::Full { label, selected_label, value } => {
                (label, selected_label.as_ref(), value.as_ref())
            }
        };
        said(label, "the label of an option")?;
        if !is_option_label(label) {
            return Err(format!("the label {label:?} has several lines; an option is shown on one").into());
        }
        if label.chars().count() > MAX_LABEL {
            return Err(format!("the label {label:?} is too long: at most {MAX_LABEL} characters").into());
        }
        let (selected, value) = (selected.unwrap_or(label), value.unwrap_or(label));
        Ok(json!({ "label": label, "selectedLabel": selected, "value": value }))
    };
    given.iter().map(one).collect()
}

enum Ended {
    Answered { row: String, value: String },
    TimedOut,
    NotDelivered,
    Cancelled,
    Lost(Refusal),
}

/// What a look found.
enum Found {
    Nothing,
    /// The host is away, or in the midst of a write.
    HostAway,
    Answer {
        row: String,
        value: String,
    },
    NotDelivered,
}

async fn watch(
    desk: &Arc<Mutex<Desk>>,
    question: &str,
    path: PathBuf,
    until: Instant,
    cancelled: CancellationToken,
) -> Ended {
    let announced = Arc::new(Notify::new());
    let announcing = Arc::clone(&announced);
    // Without a watch the poll alone will do.
    let _watch = Watch::start(&path, move || announcing.notify_one()).ok();
    let stat = || fingerprint(&path).ok();
    let mut policy = PollPolicy::new(stat());
    let mut look = true;
    loop {
        let is_last = Instant::now() >= until;
        let mut interval = policy.interval();
        if look || is_last {
            let asked = question.to_owned();
            match on_desk(desk, move |desk| look_for(desk, &asked)).await {
                Ok(Found::Answer { row, value }) => return Ended::Answered { row, value },
                Ok(Found::NotDelivered) => return Ended::NotDelivered,
                Ok(Found::Nothing) => look = false,
                Ok(Found::HostAway) => interval = SHORT,
                Err(why) => return Ended::Lost(why),
            }
        }
        if is_last {
            return Ended::TimedOut;
        }
        tokio::select! {
            () = cancelled.cancelled() => return Ended::Cancelled,
            () = announced.notified() => {
                policy.announced(stat());
                look = true;
            }
            () = tokio::time::sleep_until(until.min(Instant::now() + interval)) => {
                look |= policy.polled(stat());
            }
        }
    }
}

/// The answer, or that there will be none. A host that is away is waited for.
fn look_for(desk: &mut Desk, question: &str) -> Result<Found, Refusal> {
    let rows = match desk.inbound.pending_system() {
        Err(error) if error.is_host_away() => return Ok(Found::HostAway),
        rows => rows?,
    };
    for row in rows {
        if let Some(value) = chosen(&row, question)
            && !desk.outbound.is_acked(&row.id)?
        {
            return Ok(Found::Answer { row: row.id, value });
        }
    }
    match desk.inbound.delivered(question) {
        Ok(Some(delivered)) if !delivered.delivered => Ok(Found::NotDelivered),
        Err(error) if error.is_host_away() => Ok(Found::HostAway),
        // A folder of long ago may lack the column; then only the answer and the timeout end the wait.
        Ok(_) | Err(_) => Ok(Found::Nothing),
    }
}

/// The option that was chosen, in full, when the row answers this question (contract 11).
fn chosen(row: &InboundRow, question: &str) -> Option<String> {
    let value: Value = serde_json::from_str(&row.content).ok()?;
    let text = |key: &str| value.get(key).and_then(Value::as_str);
    let is_answer = text("type")? == "question_response" && text("questionId")? == question;
    is_answer.then(|| text("selectedOption").unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_default_to_their_label() {
        let full = QuestionOption::Full { label: "No".into(), selected_label: None, value: Some("n".into()) };
        let shown = options(&[QuestionOption::Label("Yes".into()), full]);
        let expected = [
            json!({"label": "Yes", "selectedLabel": "Yes", "value": "Yes"}),
            json!({"label": "No", "selectedLabel": "No", "value": "n"}),
        ];
        assert_eq!(shown, Ok(expected.to_vec()));
        assert!(options(&[]).is_err());
        assert!(options(&vec![QuestionOption::Label("x".into()); 21]).is_err());
        assert!(options(&[QuestionOption::Label("x".repeat(81))]).is_err());
        assert!(options(&[QuestionOption::Label(" ".into())]).is_err());
        assert!(options(&[QuestionOption::Label("two\nlines".into())]).is_err());
        assert!(options(&[QuestionOption::Label("one line\n".into())]).is_ok());
    }

    #[test]
    fn a_wait_is_as_long_as_the_host_lets_it_be() {
        assert_eq!(wait_of(None), Ok(QUESTION_WAIT.into()));
        assert_eq!(wait_of(Some(604_800.0)), Ok(MAX_QUESTION_WAIT.into()));
        for wrong in [0.5, -1.0, 604_801.0, f64::INFINITY, f64::NAN] {
            assert!(wait_of(Some(wrong)).is_err(), "{wrong}");
        }
    }
}
