// The conversation over a reload: questions, answers and files, in this tab's part of the browser's database.

const NAME = "ernie-serve";
const DAY = 24 * 60 * 60 * 1000; // milliseconds
const TAB = (sessionStorage.tab ??= crypto.getRandomValues(new Uint32Array(4)).join("-"));

function open() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore("conversations");
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function run(mode, act) {
  const database = await open();
  try {
    return await new Promise((resolve, reject) => {
      const request = act(database.transaction("conversations", mode).objectStore("conversations"));
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => reject(request.error);
    });
  } finally {
    database.close();
  }
}

/** Keep turns as `Turn.stored` returns them. Where the browser lets nothing be kept, nothing is. */
export async function keep(turns) {
  await run("readwrite", (store) => store.put({ turns, at: Date.now() }, TAB)).catch(() => {});
}

/** The turns that were kept. What other tabs kept a day ago or earlier is removed. */
export async function kept() {
  try {
    for (const tab of await run("readonly", (store) => store.getAllKeys())) {
      const { at } = await run("readonly", (store) => store.get(tab));
      if (tab !== TAB && at < Date.now() - DAY) await run("readwrite", (store) => store.delete(tab));
    }
    return (await run("readonly", (store) => store.get(TAB)))?.turns ?? [];
  } catch {
    return [];
  }
}
