// Prints the playground's programs for a request, as JSON by language.
// Arguments: a folder with lib/ of the page's files, and the request as JSON.
import {pathToFileURL} from 'node:url';

const [folder, request] = process.argv.slice(2);
const {LANGUAGES} = await import(pathToFileURL(`${folder}/snippets.js`));
console.log(JSON.stringify(Object.fromEntries(LANGUAGES.map(({id, write}) => [id, write(JSON.parse(request))]))));
