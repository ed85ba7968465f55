"""The chat in real browsers."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Page, expect

from browser.person import Person
from processes.cluster import Cluster

Make = Callable[..., Person]


def enter(somebody: Person, name: str, room: str) -> Page:
    page = somebody.open(f"/pages/chat.html#{room}")
    page.get_by_label("Your name").fill(name)
    page.get_by_role("button", name="Enter").click()
    expect(page.get_by_label("Message", exact=True)).to_be_visible()
    return page


def say(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.get_by_role("button", name="Send").click()


def texts(page: Page) -> list[str]:
    return page.locator("#messages .what").all_inner_texts()


def test_two_browsers_see_each_others_messages_and_names(person: Make) -> None:
    ann, ben = enter(person(), "Ann", "talk"), enter(person(dark=True), "Ben", "talk")
    say(ann, "Hello, is anybody here?")
    say(ben, "I am. The tea is ready.")
    for page in (ann, ben):
        expect(page.locator("#messages .what")).to_have_text(
            ["Hello, is anybody here?", "I am. The tea is ready."]
        )
        expect(page.locator("#roster li")).to_have_text(["Ann", "Ben"])


def test_who_leaves_is_gone_from_the_others_roster(person: Make) -> None:
    ann, ben = person(), person()
    page = enter(ann, "Ann", "leaving")
    enter(ben, "Ben", "leaving")
    expect(page.locator("#roster li")).to_have_count(2)
    ben.page.goto("about:blank")
    expect(page.locator("#roster li")).to_have_text(["Ann"])


def test_a_refused_name_can_be_corrected_and_nobody_is_said_to_have_left(person: Make) -> None:
    ann, ben = enter(person(), "Ann", "names"), person().open("/pages/chat.html#names")
    ben.get_by_label("Your name").evaluate("input => input.removeAttribute('maxlength')")
    ben.get_by_label("Your name").fill("B" * 33)
    ben.get_by_role("button", name="Enter").click()
    expect(ben.get_by_role("alert").first).to_contain_text("1 to 32 characters")
    ben.get_by_label("Your name").fill("Ben")
    ben.get_by_role("button", name="Enter").click()
    expect(ann.locator("#roster li")).to_have_text(["Ann", "Ben"])
    expect(ann.locator("#messages .news")).to_have_text(["Ben joined"])


def test_a_private_room_is_found_by_its_address_alone(person: Make) -> None:
    ann = person().open("/pages/chat.html")
    ann.get_by_label("Your name").fill("Ann")
    ann.get_by_role("button", name="Make a private room").click()
    say(ann, "just us")
    ben = person().open("/" + ann.url.split("/", 3)[3])
    ben.get_by_label("Your name").fill("Ben")
    ben.get_by_role("button", name="Enter").click()
    expect(ben.locator("#messages .what")).to_have_text(["just us"])


def test_kill_9_of_the_workers_while_people_write_loses_no_message_and_drops_no_socket(
    person: Make, site: Cluster
) -> None:
    ann, ben = person(), person()
    pages = enter(ann, "Ann", "crash"), enter(ben, "Ben", "crash")
    said = []
    for number in range(8):
        if number % 2:
            for pid in site.worker_pids:
                site.kill(pid)
        for name, page in zip(("Ann", "Ben"), pages, strict=True):
            said.append(f"{name} says {number}")
            say(page, said[-1])
    for page in pages:
        expect(page.locator("#messages li:not(.waiting) .what")).to_have_count(len(said))
    assert sorted(texts(pages[0])) == sorted(said)
    assert texts(pages[0]) == texts(pages[1]), "both see one order"
    assert not ann.lost_sockets
    assert not ben.lost_sockets


def test_the_history_is_there_after_the_room_has_left_memory(person: Make, site: Cluster) -> None:
    page = enter(person(), "Ann", "sleep")
    say(page, "before the night")
    expect(page.locator("#messages li:not(.waiting) .what")).to_have_count(1)
    with site.connect() as client:
        site.wait_until(
            "the room left memory",
            lambda: not any(room.live for room in client.list("ChatRoom", prefix="sleep").entries),
        )
    expect(enter(person(), "Ben", "sleep").locator("#messages .what")).to_have_text(["before the night"])
    expect(page.locator("#roster li")).to_have_text(["Ann", "Ben"])
