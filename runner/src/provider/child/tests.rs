use std::error::Error;
use std::sync::Mutex;

use super::*;
use crate::mailbox::{Event, Mailbox};
use crate::prompt::Prompt;
use crate::provider::Answer;
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(20);

/// Says each push as it is, and takes each line for an answer.
#[derive(Default)]
struct Plain {
    outstanding: usize,
    exits: Arc<Mutex<Vec<usize>>>,
    /// What a tool in flight declares, while one is.
    tool: Option<Option<Ms>>,
}

fn error(reason: &str) -> Effect {
    Effect::Tell(ProviderEvent::Error(TurnError::new(ErrorClass::Transient, reason)))
}

impl Dialect for Plain {
    fn open(&mut self) -> Vec<Effect> {
        Vec::new()
    }

    fn push(&mut self, push: Push) -> Vec<Effect> {
        self.outstanding += 1;
        vec![Effect::Write(json!({"say": push.prompt.text}))]
    }

    fn line(&mut self, line: &str) -> Vec<Effect> {
        match line {
            r#"{"tool":1}"# => self.tool = Some(None),
            r#"{"tool":2}"# => self.tool = Some(Some(Ms(1))),
            _ => self.tool = None,
        }
        if self.tool.is_some() {
            return vec![Effect::Tell(ProviderEvent::Progress(line.to_owned()))];
        }
        self.outstanding = 0;
        let text = Some(line.to_owned());
        vec![Effect::Tell(ProviderEvent::Result(Answer { text, ..Answer::default() }))]
    }

    fn exited(&mut self, exit: &Exit, unsaid: usize) -> Vec<Effect> {
        if let Ok(mut exits) = self.exits.lock() {
            exits.push(unsaid);
        }
        vec![error(&format!("ended: {}", exit.stderr))]
    }

    fn silent(&mut self, time: Ms) -> Vec<Effect> {
        vec![error(&format!("silent for {time}"))]
    }

    fn is_waiting(&self) -> bool {
        self.outstanding > 0
    }

    fn tools(&self) -> Vec<Option<Ms>> {
        self.tool.into_iter().collect()
    }
}

fn push(text: &str) -> Push {
    Push { id: text.into(), prompt: Prompt { text: text.into(), triggers: Vec::new() } }
}

type Started = (Box<dyn Query>, Arc<Mailbox>);

/// So long for a turn, and as long for a tool.
fn both(time: Ms) -> Patience {
    Patience { turn: time, tool: time }
}

fn begin(script: &str, patience: Patience) -> Result<Started, Box<dyn Error>> {
    let mailbox = Arc::new(Mailbox::default());
    let launch = Launch {
        program: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        folder: "/".into(),
        ..Launch::default()
    };
    let dialect = Box::new(Plain::default());
    let query = start(&launch, dialect, &push("first"), patience, None, mailbox.open_query());
    Ok((query.map_err(|error| error.reason)?, mailbox))
}

fn next(mailbox: &Mailbox) -> Event {
    mailbox.take(Some(Instant::now() + PATIENCE))
}

#[test]
fn a_push_goes_in_and_an_answer_comes_out_until_the_end() -> Result<(), Box<dyn Error>> {
    let (mut query, mailbox) = begin("cat", both(Ms::minutes(1)))?;
    for text in ["first", "second"] {
        let Event::Provider(ProviderEvent::Result(answer)) = next(&mailbox) else { return Err(text.into()) };
        assert_eq!(answer.text, Some(json!({"say": text}).to_string()));
        assert!(query.is_alive() && (text != "first" || query.push(&push("second"))));
    }
    let began = Instant::now();
    query.end();
    assert!(!query.is_alive() && !query.push(&push("third")) && began.elapsed() < END_GRACE);
    Ok(())
}

#[test]
fn silence_ends_the_query_only_while_something_is_owed() -> Result<(), Box<dyn Error>> {
    let (mut query, mailbox) = begin("read l; echo '{}'; read l; sleep 300", both(Ms(200)))?;
    assert!(matches!(next(&mailbox), Event::Provider(ProviderEvent::Result(_))));
    std::thread::sleep(Duration::from_millis(300));
    assert!(query.is_alive() && query.push(&push("second")));
    let Event::Provider(ProviderEvent::Error(error)) = next(&mailbox) else { return Err("no error".into()) };
    assert_eq!(error.reason, "silent for 200ms");
    assert!(!query.is_alive());
    query.abort();
    Ok(())
}

#[test]
fn a_tool_of_which_nobody_hears_again_ends_the_query_too() -> Result<(), Box<dyn Error>> {
    // Only the bound for such a tool is short, so it is what ends the query.
    let patience = Patience { turn: Ms::minutes(10), tool: Ms(100) };
    let (mut query, mailbox) = begin(r#"read l; echo '{"tool":1}'; sleep 300"#, patience)?;
    assert!(matches!(next(&mailbox), Event::Provider(ProviderEvent::Progress(_))));
    let Event::Provider(ProviderEvent::Error(error)) = next(&mailbox) else { return Err("no error".into()) };
    assert_eq!((error.class, error.reason.as_str()), (ErrorClass::Transient, "silent for 100ms"));
    assert!(!query.is_alive());
    query.abort();
    Ok(())
}

#[test]
fn a_tool_that_declares_its_time_has_it() -> Result<(), Box<dyn Error>> {
    let patience = Patience { turn: Ms::minutes(1), tool: Ms(50) };
    let (mut query, mailbox) =
        begin(r#"read l; echo '{"tool":2}'; sleep 0.4; echo '{}'; sleep 300"#, patience)?;
    assert!(matches!(next(&mailbox), Event::Provider(ProviderEvent::Progress(_))));
    assert!(matches!(next(&mailbox), Event::Provider(ProviderEvent::Result(_))));
    query.abort();
    Ok(())
}

#[test]
fn a_process_that_ends_says_so_with_its_last_words() -> Result<(), Box<dyn Error>> {
    let (query, mailbox) = begin("echo no key >&2; exit 1", both(Ms::minutes(1)))?;
    let Event::Provider(ProviderEvent::Error(error)) = next(&mailbox) else { return Err("no error".into()) };
    assert_eq!(error.reason, "ended: no key");
    assert!(!query.is_alive());
    Ok(())
}

#[test]
fn a_process_that_ignores_everything_is_gone_after_an_abort() -> Result<(), Box<dyn Error>> {
    let (mut query, mailbox) =
        begin("trap '' TERM; echo '{}'; while :; do sleep 1; done", both(Ms::minutes(1)))?;
    assert!(matches!(next(&mailbox), Event::Provider(_)));
    let began = Instant::now();
    query.abort();
    assert!(!query.is_alive() && began.elapsed() < ABORT_GRACE + KILL_GRACE);
    Ok(())
}

#[test]
fn a_program_that_was_asked_for_is_never_replaced_by_another() {
    let find = |setting, variable, search| {
        find_program(setting, ("LAMPLIGHTER_SHELL", variable), "sh", search, "/bin/cat")
            .map_err(|error| error.reason)
    };
    assert_eq!(find(None, None, Some("/nowhere:/bin")), Ok("/bin/sh".into()));
    assert_eq!(find(None, None, None), Ok("/bin/cat".into()));
    assert_eq!(find(Some("/bin/ls"), Some("/bin/cat"), None), Ok("/bin/ls".into()));
    assert_eq!(find(Some("ls"), None, Some("/bin")), Ok("/bin/ls".into()));
    let said = "there is no sh executable; looked for LAMPLIGHTER_SHELL (/gone/sh); install it in the image, or set \
                LAMPLIGHTER_SHELL";
    assert_eq!(find(None, Some("/gone/sh"), Some("/bin")), Err(said.into()));
}
