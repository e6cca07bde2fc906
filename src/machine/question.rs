//! Questions of agents: from their row to an answer, or to the end of the time that they wait for one.
//!
//! The machine knows how many options a question has and keyed digests of their labels, and of an arrival the number
//! and the keyed digest of its first line. That is enough to tell an answer from a message; the words are looked up in
//! the question's row when the answer is written.
//!
//! Invariant: a question is in the state from its row to [`LATE_FOR`] after its end, and has a deadline all that time.
//! Invariant: an arrival that answers becomes one `question_response` row and no chat row, however often it comes.

use super::Step;
use super::effect::{ArrivalRef, Body, Notice, Outcome};
use super::input::{Arrival, Line, QuestionFacts};
use super::policy::{LATE_FOR, QUESTIONS_PER_SESSION};
use super::state::{Item, Question, QuestionState, State};
use crate::base::{At, MessageNo, SessionNo};
use crate::session::rows::Address;

/// What an arrival's first line is to the questions of its chat.
enum Match {
    /// It answers this one with this option.
    Answers(MessageNo, u16),
    /// It answered this one before: its sender did not hear of it.
    Repeats(MessageNo),
    /// It would have answered this one in time.
    TooLate(MessageNo),
}

impl Question {
    /// The option that a line names: by its label, or else by its number from 1. A label wins, for somebody who types
    /// one means it, also where it is a number.
    fn option(&self, line: &Line) -> Option<u16> {
        let by_label = self.facts.labels.iter().position(|&label| label == line.digest);
        let by_number = || {
            let place = usize::try_from(line.number?).ok()?.checked_sub(1)?;
            (place < self.facts.labels.len()).then_some(place)
        };
        u16::try_from(by_label.or_else(by_number)?).ok()
    }

    /// When something happens to it although nobody says anything.
    pub fn deadline(&self) -> At {
        match self.state {
            QuestionState::Asked | QuestionState::Open => self.asked + self.facts.timeout,
            QuestionState::Answered { since, .. } | QuestionState::Closed { since } => since + LATE_FOR,
        }
    }

    /// Whether it waits for an answer.
    pub fn is_open(&self) -> bool {
        matches!(self.state, QuestionState::Asked | QuestionState::Open)
    }
}

impl State {
    /// The questions of a session that wait for an answer, in the order in which they were asked.
    pub fn open_questions(
        &self,
        session: SessionNo,
    ) -> impl DoubleEndedIterator<Item = (MessageNo, &Question)> {
        self.questions_of(session).filter(|(_, question)| question.is_open())
    }

    /// Whether a row is the answer to a question.
    pub(super) fn is_answer(&self, session: SessionNo, id: &str) -> bool {
        let answers =
            |question: &Question| matches!(&question.state, QuestionState::Answered { row, .. } if row == id);
        self.questions_of(session).any(|(_, question)| answers(question))
    }

    /// Until when a container may be waited for by somebody's answer.
    pub(super) fn asks_until(&self, session: SessionNo) -> Option<At> {
        self.open_questions(session).map(|(_, question)| question.deadline()).max()
    }
}

impl Step<'_> {
    /// A row that is a question was taken. The oldest one of the session makes room for it, a finished one first.
    pub(super) fn ask_question(
        &mut self,
        no: MessageNo,
        session: SessionNo,
        to: Address,
        row: (i64, String),
        facts: QuestionFacts,
    ) {
        let (rowid, id) = row;
        // Asked again by an operator: the new delivery is the one that waits.
        let again = self.state.questions_of(session).find(|(_, it)| it.id == id).map(|(no, _)| no);
        if let Some(old) = again {
            self.state.remove_question(old);
        }
        if self.state.questions_of(session).count() >= QUESTIONS_PER_SESSION {
            let finished = self.state.questions_of(session).find(|(_, it)| !it.is_open()).map(|(no, _)| no);
            let oldest = self.state.questions_of(session).next().map(|(no, _)| no);
            if let Some(old) = finished.or(oldest) {
                self.state.remove_question(old);
            }
        }
        let (asked, state) = (self.at, QuestionState::Asked);
        self.state.add_question(no, Question { session, rowid, id, to, facts, asked, state });
    }

    /// A question is on its way to its chat, so an answer may come; or it did not get there.
    pub(super) fn show_question(&mut self, no: MessageNo, shown: bool) {
        let Some(question) = self.state.question(no).filter(|it| it.is_open()) else { return };
        let state = if shown { QuestionState::Open } else { QuestionState::Asked };
        if question.state != state
            && let Some(question) = self.state.question_mut(no)
        {
            question.state = state;
        }
    }

    /// A question will not get to its chat, or can be answered by nobody any more.
    pub(super) fn drop_question(&mut self, no: MessageNo) {
        self.state.remove_question(no);
    }

    /// All questions of a session: their rows are gone.
    pub(super) fn drop_questions(&mut self, session: SessionNo) {
        let all: Vec<MessageNo> = self.state.questions_of(session).map(|(no, _)| no).collect();
        all.into_iter().for_each(|no| self.state.remove_question(no));
    }

    /// Its time is over: an open one is closed, a finished one forgotten.
    pub(super) fn on_question_due(&mut self, no: MessageNo) {
        let since = self.at;
        match self.state.question(no).map(Question::is_open) {
            Some(true) => {
                if let Some(question) = self.state.question_mut(no) {
                    question.state = QuestionState::Closed { since };
                }
            }
            Some(false) => self.state.remove_question(no),
            None => {}
        }
    }

    /// What an arrival is to the questions of its chat: the newest that it fits counts, open ones first.
    fn match_question(&self, session: SessionNo, chat: &Address, it: &Arrival, line: &Line) -> Option<Match> {
        let here = || self.state.questions_of(session).filter(|(_, question)| question.to == *chat).rev();
        let repeats = here().find(|(_, question)| {
            matches!(&question.state, QuestionState::Answered { by, .. } if *by == it.message_id)
        });
        if let Some((no, _)) = repeats {
            return Some(Match::Repeats(no));
        }
        let answers = here()
            .filter(|(_, question)| question.state == QuestionState::Open)
            .find_map(|(no, question)| Some(Match::Answers(no, question.option(line)?)));
        let late = || {
            here()
                .filter(|(_, question)| matches!(question.state, QuestionState::Closed { .. }))
                .find(|(_, question)| question.option(line).is_some())
                .map(|(no, _)| Match::TooLate(no))
        };
        answers.or_else(late)
    }

    /// Takes an arrival as the answer to a question, if it is one.
    pub(super) fn take_answer(
        &mut self,
        session: SessionNo,
        chat: &Address,
        it: &Arrival,
        line: &Line,
    ) -> bool {
        // The repeat of a message that was taken before the question came.
        let row = format!("{}:{}", it.message_id, self.state.directory().group);
        let inbox = self.state.session(session).into_iter().flat_map(|known| &known.inbox);
        if inbox.filter_map(|no| self.state.inbound(*no)).any(|message| message.id == row) {
            return false;
        }
        match self.match_question(session, chat, it, line) {
            None => return false,
            Some(Match::Answers(no, option)) => self.answer_question(no, option, it),
            Some(Match::Repeats(no)) => self.write_answer(no, Some(arrival_ref(it))),
            Some(Match::TooLate(no)) => self.tell_too_late(session, chat, no, it),
        }
        true
    }

    fn answer_question(&mut self, no: MessageNo, option: u16, it: &Arrival) {
        let ms = self.state.wall().0.div_euclid(1_000);
        let since = self.at;
        let Some(question) = self.state.question_mut(no) else { return };
        // Contract 8.
        let row = format!("qr-{}-{ms}", question.facts.question);
        question.state =
            QuestionState::Answered { by: it.message_id.clone(), row, option, on_disk: false, since };
        self.write_answer(no, Some(arrival_ref(it)));
    }

    /// Has the row of an answer written, if none of its id is there.
    fn write_answer(&mut self, no: MessageNo, arrival: Option<ArrivalRef>) {
        let Some(question) = self.state.question(no) else { return };
        let QuestionState::Answered { row, option, .. } = &question.state else { return };
        let (session, to, row) = (question.session, question.to.clone(), row.clone());
        let body = Body::Answer {
            question: no,
            rowid: question.rowid,
            id: question.id.clone(),
            option: *option,
            arrival,
        };
        self.write_inbound(session, row, to, true, body);
    }

    /// The row of an answer is on disk.
    pub(super) fn note_answer(&mut self, no: MessageNo) {
        let Some(question) = self.state.question(no) else { return };
        if matches!(question.state, QuestionState::Answered { on_disk: false, .. })
            && let Some(QuestionState::Answered { on_disk, .. }) =
                self.state.question_mut(no).map(|question| &mut question.state)
        {
            *on_disk = true;
        }
    }

    /// The row of an answer is on disk: whoever gave it is told, and that there is nothing more to wait for.
    pub(super) fn on_answer_written(
        &mut self,
        session: SessionNo,
        to: &Address,
        arrival: Option<ArrivalRef>,
        repeat: bool,
    ) {
        let Some(ArrivalRef { channel, receipt, id }) = arrival else { return };
        self.tell(super::effect::Effect::AcceptInbound { channel, receipt, duplicate: repeat });
        self.end_answer(session, to, id);
    }

    /// The turn of an arrival that became no chat row ends with what was made of it.
    fn end_answer(&mut self, session: SessionNo, to: &Address, id: String) {
        let destination = self.state.destination_at(session, to);
        if let Some(destination) = self.state.destination_mut(destination) {
            destination.queue.push_back(Item::Settled { id, outcome: Outcome::Completed });
        }
    }

    /// The row of an answer could not be written: its sender keeps it, and the question waits on.
    pub(super) fn on_answer_not_written(&mut self, no: MessageNo) {
        if let Some(question) = self.state.question_mut(no)
            && matches!(question.state, QuestionState::Answered { on_disk: false, .. })
        {
            question.state = QuestionState::Open;
        }
    }

    fn tell_too_late(&mut self, session: SessionNo, chat: &Address, no: MessageNo, it: &Arrival) {
        let Some(waited) = self.state.question(no).map(|question| question.facts.timeout) else { return };
        let ArrivalRef { channel, receipt, id } = arrival_ref(it);
        self.tell(super::effect::Effect::AcceptInbound { channel, receipt, duplicate: false });
        self.notify(session, chat, Notice::TooLate { id: id.clone(), waited });
        self.end_answer(session, chat, id);
    }
}

fn arrival_ref(it: &Arrival) -> ArrivalRef {
    ArrivalRef { channel: it.channel.clone(), receipt: it.receipt, id: it.message_id.clone() }
}
